from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import State
from gradstats.compressors.wrappers.error_feedback import Residual, resharded_residual
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload


@dataclass(frozen=True)
class LowPass(Memory):
    r"""Error feedback through a low-pass filter: the memory follows the errors slowly.

    .. math:: v_t = g_t + e_t, \quad \hat g_t = C(v_t), \quad
              e_{t+1} = (1 - \beta) e_t + \beta (v_t - \hat g_t)

    With β = 1 it is `ef`. With a small β the workers' memories stay more alike. `clt-k`, where one
    worker chooses the indices for all, needs that at large learning rates.

    Args:
        compressor: usually `clt-k`.
        beta: β, in (0, 1].

    References:
        Chen et al., "ScaleCom", NeurIPS 2020.
    """

    compressor: Compressor
    beta: float = 0.1
    name = "lowpass"
    uses_update = False
    steers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1], got {self.beta!r}")

    def init(self, grad: Tensor) -> Residual:
        """Start with no residual."""
        return Residual(
            grad.detach().new_zeros(grad.shape), self.compressor.init_under_memory(grad)
        )

    def before(self, grad: Tensor, state: State, *, reuse: bool = False) -> tuple[Tensor, State]:
        """Add the residual."""
        return summed(state.residual, grad), state

    def after(
        self, sent: Payload, corrected: Tensor, state: State, update: Tensor | None = None
    ) -> Residual:
        """Move the residual towards what was not sent."""
        sent.remove_from(corrected.view(-1))
        residual = corrected.mul_(self.beta).add_(state.residual, alpha=1 - self.beta)
        return Residual(residual, state.inner)

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Residual:
        """Add up the residuals."""
        return resharded_residual(self, states, worker, workers)
