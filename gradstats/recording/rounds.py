"""Rounds of pseudo-gradients: where a step is over because `record` is called."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from gradstats.recording.current_step import CurrentStep
from gradstats.recording.pseudo import checked_gradients, checked_steps


class Rounds:
    """Stages the rows of pseudo-gradients, one per round.

    Args:
        current: The step under way.
        names: Indices of parameters by the names that pseudo-gradients go by.
        alone: Nothing else is recorded: a round is over when its pseudo-gradients are given. Else
            it is over with the step of the outer optimizer.
    """

    def __init__(
        self, current: CurrentStep, names: Mapping[str, int | None], *, alone: bool
    ) -> None:
        self._current = current
        self._names = names
        self._alone = alone

    @property
    def between(self) -> bool:
        """Whether an inner step is under way, whose gradients are not those of the round."""
        return bool(self._current.rows.named) and self._current.seen.inner_steps is None

    def record(self, gradients: Mapping[str, Tensor], inner_steps: int) -> None:
        """Stage the pseudo-gradients of a round; see `Capture.record`."""
        self.finish()  # the round before went without a step
        step = self._current.number
        self._current.guard.step(step, partial(self._take, step, gradients, inner_steps))
        if self._alone:
            self.finish()

    def _take(self, step: int, gradients: Mapping[str, Tensor], inner_steps: int) -> None:
        rows, seen = self._current.rows, self._current.seen
        seen.inner_steps = 0
        if step < rows.due:
            return
        try:
            seen.inner_steps = checked_steps(inner_steps)
            rows.take_named(step, checked_gradients(gradients, self._names, rows.table))
        except Exception as error:
            fact = f"{type(error).__name__}: {error}"
            rows.drop("pseudo", f"cannot record the pseudo-gradients of round {step}: {fact}")

    def finish(self) -> None:
        """Complete the rows of a round that waits for no other rows."""
        if self._current.seen.inner_steps is not None:
            step = self._current.begin()
            self._current.guard.step(step, lambda: self._end(step))

    def _end(self, step: int) -> None:
        try:
            self._current.rows.complete_named(step, self._current.training.optimizers[0])
        finally:
            self._current.seen.forget()
            self._current.look_ahead()
