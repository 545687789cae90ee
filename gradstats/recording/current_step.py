"""The step under way, as every part of a recording sees it."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from gradstats.recording.guard import Guard
from gradstats.recording.hooks import LocalHooks, ids_held
from gradstats.recording.marks import Marks
from gradstats.recording.messages import Reports, surprises
from gradstats.recording.rows import Rows
from gradstats.recording.step_context import Circumstances
from gradstats.recording.training import Training


@dataclass(eq=False)
class CurrentStep:
    """The step under way: its number, its rows, and what was seen around it.

    Attributes:
        number: Number that the next optimizer step gets.
        training: The model and its optimizers, held weakly.
        tensors: The recorded parameters.
        rows: The rows of the step.
        seen: What was seen around the step.
        marks: The gradients as clipping left them.
        guard: Runs every piece of work, counts its time and catches its faults.
        reports: Prints what went wrong, once.
        local_hooks: The hooks on parameters, there only while local gradients are due.
        closure_step: Number of the step whose closure runs for the first time, else None.
        repeated: A closure runs again within its step: these gradients belong to no row.
        index: Index of each recorded parameter by its `id`.
    """

    number: int
    training: Training
    tensors: list[nn.Parameter]
    rows: Rows
    seen: Circumstances
    marks: Marks
    guard: Guard
    reports: Reports
    local_hooks: LocalHooks
    closure_step: int | None = None
    repeated: bool = False
    index: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.index = {id(tensor): index for index, tensor in enumerate(self.tensors)}
        self._ids = ids_held(self.training.optimizers)

    @property
    def active(self) -> int:
        """Number of the step that the gradients belong to now."""
        return self.number if self.closure_step is None else self.closure_step

    @property
    def due(self) -> bool:
        """Whether the step that the gradients belong to may have a row."""
        return self.active >= self.rows.due

    def begin(self) -> int:
        """Return the number of the step that begins; the next one gets the number after it."""
        step = self.number
        self.number += 1
        self.seen.tick()
        return step

    def indices(self, parameters: Iterable[Tensor]) -> set[int]:
        """Indices of those of the parameters that are recorded."""
        return {self.index[id(one)] for one in parameters if id(one) in self.index}

    def put(self, index: int, points: Collection[str]) -> None:
        """Copy a parameter's gradient into the rows at these points that are being made."""
        self.guard.piece(
            lambda: self.rows.put(index, points),
            lambda error: self.rows.give_up(self.number, error),
        )

    def piece(self, work: Callable[[], None]) -> None:
        """Do a part of what the step asks for; a fault is printed once."""
        self.guard.piece(work, self._failed)

    def _failed(self, error: Exception) -> None:
        fact = f"{type(error).__name__}: {error}"
        self.reports.once("hook", f"cannot record step {self.number}: {fact}")

    def unclip(self, changed: set[int]) -> None:
        """The gradients at these indices are not as clipping left them: its norm is not theirs."""
        self.seen.unclip(changed)

    def complete(self, step: int, last: Callable[[], None]) -> None:
        """Complete the rows of a step whose gradients the optimizer is about to get.

        Args:
            step: Its number.
            last: Looks at the gradients once more, before the rows that show them are made.
        """
        optimizers = self.training.optimizers
        try:
            for subject, text in surprises(optimizers, self._ids, self.index, self.seen):
                self.reports.once(subject, text)
            last()
            self.rows.complete(step, optimizers[0])
        finally:
            self.over()

    def over(self) -> None:
        """Forget what was seen around the step, and look at the next one."""
        self.seen.forget()
        self.marks.clear()
        self.look_ahead()

    def look_ahead(self) -> None:
        """Find the next step of which there may be a row, and begin what is made of pieces."""
        self.rows.look_ahead(self.number)
        self.local_hooks.want(bool(self.rows.open))

    def release(self) -> None:
        """Let go of the parameters: whoever keeps the handle does not keep them."""
        self.tensors = []
        self.marks.forget()
        self.local_hooks = LocalHooks([], lambda _: None)
        self.rows.release()
        self.training.forget()
