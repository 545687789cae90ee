"""What memories have in common."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.rounds import Collective, State, Step


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
    def contract(self) -> Contract:
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
