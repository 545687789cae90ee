"""Error feedback: what was not sent is added to the next gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import State, Terms
from gradstats.compressors.states import own_share
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload


@dataclass(eq=False)
class Residual:
    """Residual that was not sent yet, and the state of the compressor inside.

    Attributes:
        residual: shaped as the gradient.
        inner: state of the wrapped compressor.
    """

    residual: Tensor
    inner: State

    def clone(self) -> Residual:
        """Return a copy that later calls do not change."""
        return Residual(self.residual.clone(), copy.deepcopy(self.inner))


@dataclass(frozen=True)
class ErrorFeedback(Memory):
    r"""Adds what was not sent to the next gradient.

    .. math:: v_t = g_t + \gamma e_t, \quad \hat g_t = C(v_t), \quad e_{t+1} = v_t - \hat g_t.

    With γ = 1 old residual + gradient = sent + new residual, and nothing is ever lost. A leaky
    memory, γ < 1, forgets stale errors: sum ĝ_t = sum g_t - e_{T+1} - (1 - γ) sum_{t=2..T} e_t.

    Args:
        compressor: any compressor; feedback is always outermost.
        gamma: γ, in [0, 1].

    References:
        Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019; for γ < 1 Chen et al.,
        "CO3", 2022.
    """

    compressor: Compressor
    gamma: float = 1.0
    name = "ef"
    uses_update = False
    steers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma!r}")

    @property
    def shows_nonfinite(self) -> bool:
        """As of the compressor inside: the residual is finite."""
        return self.compressor.shows_nonfinite

    def init(self, grad: Tensor) -> Residual:
        """Start with no residual."""
        residual = grad.detach().new_zeros(grad.shape)
        return Residual(residual, self.compressor.init_under_memory(grad))

    def before(self, grad: Tensor, state: State, *, reuse: bool = False) -> tuple[Tensor, State]:
        """Add the residual."""
        corrected = summed(self._remembered(state), grad)
        return corrected, Residual(corrected, state.inner)

    def terms(self, grad: Tensor, state: State, *, reuse: bool = True) -> Terms:
        """Return residual and gradient."""
        own = type(self).before is not ErrorFeedback.before
        if own or not are_addable(state.residual, grad):
            return None
        if not reuse:
            return self._remembered(state), grad
        if self.gamma != 1:
            state.residual.mul_(self.gamma)
        return state.residual, grad

    def _remembered(self, state: Residual) -> Tensor:
        return state.residual if self.gamma == 1 else state.residual * self.gamma

    def after(
        self, sent: Payload, corrected: Tensor, state: State, update: Tensor | None = None
    ) -> Residual:
        """Keep what was not sent."""
        sent.remove_from(corrected.view(-1))
        return Residual(corrected, state.inner)

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Residual:
        """Add up the residuals."""
        return resharded_residual(self, states, worker, workers)


def are_addable(total: Tensor, term: Tensor) -> bool:
    """Whether a term may be added in place, element by element, without care for the range."""
    alike = total.shape == term.shape and total.dtype == term.dtype
    wide = total.is_floating_point() and total.dtype.itemsize > 2
    flat = term.layout is torch.strided and term.is_contiguous() and total.is_contiguous()
    return alike and wide and flat


def resharded_residual(
    memory: Memory, states: Sequence[Residual], worker: int, workers: int
) -> Residual:
    """Return one worker's residual after the number of workers has changed, see `own_share`."""
    inner = memory.compressor.resharded([state.inner for state in states], worker, workers)
    return Residual(own_share([state.residual for state in states], worker, workers), inner)
