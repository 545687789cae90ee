"""The handle of a process in which nothing is recorded, because another process does."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from torch import Tensor

from gradstats.recording.stats import Stats


class Idle:
    """A handle whose methods do nothing, for a process that leaves the recording to another.

    Attributes:
        step: The `start_step` it was given.
        stats: Zeros.
    """

    def __init__(self, start_step: int) -> None:
        self.step = start_step
        self.stats = Stats()

    def __repr__(self) -> str:
        return f"<Idle: another process records, step {self.step}>"

    def log(self, *, loss: Tensor | float) -> None:
        """Do nothing."""

    def record(self, gradients: Mapping[str, Tensor], *, inner_steps: int = 0) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
