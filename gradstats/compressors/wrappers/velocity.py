from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import Collective, State, Step
from gradstats.compressors.states import own_share
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(eq=False)
class Velocities:
    """Momentum and what of it was not sent yet. Consumed by each call.

    Attributes:
        momentum: u, shaped as the gradient.
        residual: v, shaped as the gradient.
        inner: state of the wrapped compressor.
    """

    momentum: Tensor
    residual: Tensor
    inner: State

    def clone(self) -> Velocities:
        """A copy that later calls leave alone."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        if not self.clip >= 0:
            raise ValueError(f"clip must be a norm, 0 for none, got {self.clip!r}")

    def init(self, grad: Tensor) -> Velocities:
        """At rest."""
        zeros = grad.detach().new_zeros(grad.shape)
        return Velocities(zeros, zeros.clone(), self.compressor.init(grad))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Accumulate, encode, take off what was sent."""
        state = self._accumulated(grad, state)
        payload, inner = self.compressor.encode(state.residual, state.inner, rng)
        self._take_off(payload, state)
        return payload, Velocities(state.momentum, state.residual, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`, over all workers."""
        state = self._accumulated(grad, state)
        step = yield from self.compressor.exchange(state.residual, state.inner, rng)
        self._take_off(step.sent, state)
        after = Velocities(state.momentum, state.residual, step.state)
        return Step(step.update, step.sent, after)

    def uncompressed(self, grad: Tensor, state: State) -> Tensor:
        """The momentum."""
        return self._accumulated(grad, replace(state, residual=torch.zeros_like(grad))).residual

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Velocities:
        """Momenta and residuals are added up."""
        momentum = own_share([state.momentum for state in states], worker, workers)
        residual = own_share([state.residual for state in states], worker, workers)
        inner = self.compressor.resharded([state.inner for state in states], worker, workers)
        return Velocities(momentum, residual, inner)

    def _accumulated(self, grad: Tensor, state: Velocities) -> Velocities:
        g, u, v = self._clipped(grad.detach()), state.momentum, state.residual
        if self.nesterov:
            u = summed(u, g).mul_(self.momentum)
            v = summed(summed(v, u), g)
        else:
            u = summed(u * self.momentum, g)
            v = summed(v, u)
        return Velocities(u, v, state.inner)

    def _clipped(self, grad: Tensor) -> Tensor:
        if not self.clip:
            return grad
        longest = float(grad.double().norm())
        return grad * min(1.0, self.clip / longest) if longest else grad

    def _take_off(self, payload: Payload, state: Velocities) -> None:
        payload.remove_from(state.residual.view(-1))
        if self.masking:
            payload.clear(state.momentum.view(-1))
