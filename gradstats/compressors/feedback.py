from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Collective, Compressor, Contract, State, Step
from gradstats.compressors.none import NoCompression
from gradstats.compressors.payloads import Payload
from gradstats.compressors.rng import Rng
from gradstats.compressors.states import own_share
from gradstats.kernels.ranges import summed


class Memory(Compressor):
    """A compressor around another, with a memory of what was or was not sent.

    Its state is a dataclass with the state of the compressor inside as `inner`.
    """

    compressor: Compressor
    steers = True  # unless a class knows that its memory holds errors alone

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ValueError(f"compressor must be a compressor, got {self.compressor!r}")
        if isinstance(self.compressor, Memory):
            # two memories of the same error would send it twice
            raise ValueError(f"compressor must not have a memory inside, got {self.compressor}")
        super().__post_init__()

    @property
    def contract(self) -> Contract:  # type: ignore[override]
        """That of the compressor inside, with a memory, and no promise for a single step."""
        return replace(
            self.compressor.contract,
            delta=None,
            omega=None,
            in_expectation=False,
            unbiased=False,
            has_memory=True,
            wants_feedback=False,
        )

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """The step with everything sent: that of this memory around no compression."""
        inside: dict[str, Any] = {"compressor": NoCompression()}
        whole: Memory = replace(self, **inside)  # type: ignore[type-var]
        step = yield from whole.exchange(grad, replace(state, inner=None))
        return replace(step, state=replace(step.state, inner=state.inner))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """See `Compressor.resharded`; a memory must say what becomes of it."""
        raise ValueError(f"the number of workers must stay, got another one for {self}")

    def observe(self, state: State, loss: float) -> State:
        """For the compressor inside."""
        state.inner = self.compressor.observe(state.inner, loss)
        return state

    @property
    def label(self) -> str:
        """The memory without the compressor inside: `ef`, `ef(gamma=0.7)`."""
        settings = self.spec.removeprefix(f"{self.name}({self.compressor}").strip(", )")
        return f"{self.name}({settings})" if settings else self.name

    @property
    def ratio_asked(self) -> float | None:
        """That of the compressor inside."""
        return self.compressor.ratio_asked

    def target_count(self, numel: int) -> int:
        """That of the compressor inside, whose parts may have targets of their own."""
        return self.compressor.target_count(numel)


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
