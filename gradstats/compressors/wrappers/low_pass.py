from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import Collective, State, Step
from gradstats.compressors.wrappers.error_feedback import Residual, resharded_residual
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(frozen=True)
class LowPass(Memory):
    r"""Error feedback through a low-pass filter: the memory follows the errors slowly.

    .. math:: v_t = g_t + e_t, \quad \hat g_t = C(v_t), \quad
              e_{t+1} = (1 - \beta) e_t + \beta (v_t - \hat g_t)

    With β = 1 it is `ef`. With a small β the memories of the workers stay more alike, which is
    what places chosen by one worker for all need at large learning rates.

    Args:
        compressor: usually `clt-k`.
        beta: β, in (0, 1].

    References:
        Chen et al., "ScaleCom", NeurIPS 2020.
    """

    compressor: Compressor
    beta: float = 0.1
    name = "lowpass"
    steers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1], got {self.beta!r}")

    def init(self, grad: Tensor) -> Residual:
        """No residual."""
        return Residual(grad.detach().new_zeros(grad.shape), self.compressor.init(grad))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode residual + gradient."""
        compensated = summed(state.residual, grad.detach())
        payload, inner = self.compressor.encode(compensated, state.inner, rng)
        return payload, self._after(compensated, payload, state, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`, over all workers."""
        compensated = summed(state.residual, grad.detach())
        step = yield from self.compressor.exchange(compensated, state.inner, rng)
        return Step(step.update, step.sent, self._after(compensated, step.sent, state, step.state))

    def _after(
        self, compensated: Tensor, sent: Payload, state: Residual, inner: State
    ) -> Residual:
        sent.remove_from(compensated.view(-1))
        residual = compensated.mul_(self.beta).add_(state.residual, alpha=1 - self.beta)
        return Residual(residual, inner)

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Residual:
        """Residuals are added up."""
        return resharded_residual(self, states, worker, workers)
