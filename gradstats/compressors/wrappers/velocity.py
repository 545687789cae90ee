from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import State, Terms
from gradstats.compressors.states import own_share
from gradstats.compressors.wrappers.error_feedback import are_addable
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload


@dataclass(eq=False)
class Velocities:
    """Momentum, and the part of its sum that was not sent yet.

    Attributes:
        momentum: u, shaped as the gradient.
        residual: v, shaped as the gradient.
        inner: state of the wrapped compressor.
    """

    momentum: Tensor
    residual: Tensor
    inner: State

    def clone(self) -> Velocities:
        """Return a copy that later calls do not change."""
        return Velocities(self.momentum.clone(), self.residual.clone(), copy.deepcopy(self.inner))


@dataclass(frozen=True)
class Velocity(Memory):
    r"""Deep Gradient Compression's memory: accumulates velocities, not gradients.

    .. math:: u_t = m u_{t-1} + g_t, \quad v_t = v_{t-1} + u_t

    (Nesterov: :math:`u_t = m (u_{t-1} + g_t)`, :math:`v_t = v_{t-1} + u_t + g_t`). v is encoded,
    loses what was sent, and with masking u is set to 0 where elements were selected, so that
    stale momentum does not carry on; where every element is sent none is stale. The optimizer then
    runs without momentum: what it receives is a velocity, up to 1/(1 - m) gradients long.

    Args:
        compressor: usually `dgc`.
        momentum: m, in [0, 1).
        nesterov: the second form.
        masking: factor masking.
        clip: longest norm of the local gradient; for a limit L over n workers pass L/√n. 0: none.

    References:
        Lin et al., "Deep gradient compression", ICLR 2018.
    """

    compressor: Compressor
    momentum: float = 0.9
    nesterov: bool = False
    masking: bool = True
    clip: float = 0.0
    name = "velocity"
    uses_update = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if not self.clip >= 0:
            raise ValueError(f"clip must be a norm, 0 for none, got {self.clip!r}")

    def init(self, grad: Tensor) -> Velocities:
        """Start at rest."""
        zeros = grad.detach().new_zeros(grad.shape)
        return Velocities(zeros, zeros.clone(), self.compressor.init_under_memory(grad))

    def before(self, grad: Tensor, state: State, *, reuse: bool = False) -> tuple[Tensor, State]:
        """Accumulate momentum and residual."""
        g, u, v = self._clipped(grad), state.momentum, state.residual
        if self.nesterov:
            u = summed(u, g).mul_(self.momentum)
            v = summed(summed(v, u), g)
        else:
            u = summed(u * self.momentum, g)
            v = summed(v, u)
        return v, Velocities(u, v, state.inner)

    def terms(self, grad: Tensor, state: State, *, reuse: bool = True) -> Terms:
        """Return the residual and what is added to it: momentum, or with Nesterov the gradient."""
        if not reuse or not are_addable(state.momentum, grad):
            return None
        g, u, v = self._clipped(grad), state.momentum, state.residual
        if not self.nesterov:
            return v, u.mul_(self.momentum).add_(g)
        v.add_(u.add_(g).mul_(self.momentum))
        return v, g

    def after(
        self, sent: Payload, corrected: Tensor, state: State, update: Tensor | None = None
    ) -> Velocities:
        """Subtract what was sent, and mask the momentum."""
        sent.remove_from(corrected.view(-1))
        if self.masking:
            sent.clear(state.momentum.view(-1))
        return Velocities(state.momentum, corrected, state.inner)

    def uncompressed(self, grad: Tensor, state: State) -> Tensor:
        """Return the momentum."""
        at_rest = replace(state, residual=torch.zeros_like(grad))
        return self.before(grad.detach(), at_rest)[0]

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Velocities:
        """Add up momenta and residuals."""
        momentum = own_share([state.momentum for state in states], worker, workers)
        residual = own_share([state.residual for state in states], worker, workers)
        inner = self.compressor.resharded([state.inner for state in states], worker, workers)
        return Velocities(momentum, residual, inner)

    def _clipped(self, grad: Tensor) -> Tensor:
        if not self.clip:
            return grad
        wide = grad.float() if grad.dtype.itemsize == 2 else grad
        factor = self.clip / grad.double().norm()
        return (wide * torch.where(factor < 1, factor, 1.0).to(wide.dtype)).to(grad.dtype)
