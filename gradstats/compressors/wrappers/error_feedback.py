"""Error feedback: what was not sent is added to the next gradient."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import Collective, State, Step
from gradstats.compressors.states import own_share
from gradstats.compressors.wrappers.memory import Memory
from gradstats.kernels.ranges import summed
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(eq=False)
class Residual:
    """What was not sent yet, and the state of the compressor inside. Consumed by each call.

    Attributes:
        residual: shaped as the gradient.
        inner: state of the wrapped compressor.
    """

    residual: Tensor
    inner: State

    def clone(self) -> Residual:
        """A copy that later calls leave alone."""
        return Residual(self.residual.clone(), copy.deepcopy(self.inner))


@dataclass(frozen=True)
class ErrorFeedback(Memory):
    r"""What is not sent now is added to the next gradient.

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
    steers = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma!r}")

    def init(self, grad: Tensor) -> Residual:
        """No residual."""
        residual = grad.detach().new_zeros(grad.shape)
        return Residual(residual, self.compressor.init(grad))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode residual + gradient; the residual is updated in place."""
        kept: Tensor = state.residual if self.gamma == 1 else state.residual.mul_(self.gamma)
        half = kept.dtype.itemsize == 2
        compensated = summed(kept, grad.detach()) if half else kept.add_(grad.detach())
        payload, inner = self.compressor.encode(compensated, state.inner, rng)
        payload.remove_from(compensated.view(-1))
        return payload, Residual(compensated, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`, over all workers: the residual loses what the exchange counts as sent."""
        kept = state.residual if self.gamma == 1 else state.residual * self.gamma
        compensated = summed(kept, grad.detach())
        step = yield from self.compressor.exchange(compensated, state.inner, rng)
        step.sent.remove_from(compensated.view(-1))
        return Step(step.update, step.sent, Residual(compensated, step.state))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Residual:
        """Residuals are added up."""
        return resharded_residual(self, states, worker, workers)


def resharded_residual(
    memory: Memory, states: Sequence[Residual], worker: int, workers: int
) -> Residual:
    """The residual of one of `workers` from those of all of another number, see `own_share`."""
    inner = memory.compressor.resharded([state.inner for state in states], worker, workers)
    return Residual(own_share([state.residual for state in states], worker, workers), inner)


def compensated(
    grads: Iterable[tuple[int, Tensor]], compressor: ErrorFeedback, *, seed: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """What a compressor with error feedback gets to see: (step, gradient + residual).

    Steps with a NaN or inf are left out, as a replay skips them.

    Args:
        grads: (step, flat gradient) in the order of training.
        compressor: with its feedback.
        seed: of a random method.
    """
    state = None
    for step, grad in grads:
        if not grad.isfinite().all():
            continue
        state = compressor.init(grad) if state is None else state
        yield step, compressor.gamma * state.residual + grad
        _, state = compressor.encode(grad, state, Rng(seed, step))
