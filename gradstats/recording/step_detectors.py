"""When a step begins and when it is over: with one optimizer, and with several."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gradstats.recording.current_step import CurrentStep
from gradstats.recording.hooks import closure_of, with_closure
from gradstats.recording.slots import Slot

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StepDetector(Protocol):
    """One way of finding out when a step begins and when it is over."""

    def before_call(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """The optimizer of this number is about to step.

        Returns:
            Other arguments for it, or None for the same.
        """

    def before_scaler(self) -> None:
        """A GradScaler is about to divide the gradients and to step an optimizer."""

    def after_scaler(self, number: int, before: int) -> None:
        """A GradScaler has stepped the optimizer of this number, or has left it out.

        Args:
            number: Of the optimizer.
            before: The number of the step, as it was before the scaler.
        """

    def before_clipping(self, indices: set[int]) -> None:
        """The gradients of these parameters are about to be clipped, in a step that is due."""

    def arrived(self, index: int) -> None:
        """A parameter has got a gradient: of the step under way, or of the next one."""

    def is_over(self, index: int) -> bool:
        """Whether an optimizer has updated this parameter in the step under way."""

    def finish(self) -> None:
        """Complete the step under way, if it waits for more."""

    @property
    def last_rows(self) -> list[Slot]:
        """The rows of the step just done, to which its loss belongs."""


class OneOptimizer:
    """A step is one call of the optimizer, also one that a GradScaler skips.

    Args:
        current: The step under way.
    """

    def __init__(self, current: CurrentStep) -> None:
        self._current = current

    def before_call(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Complete the step, or do so when the optimizer has called its closure."""
        step = self._current.begin()
        closure = closure_of(args, kwargs)
        if closure is None:
            self._complete(step)
            return None
        # the gradients of this step come into being when the optimizer calls the closure
        return with_closure(args, kwargs, self._recording_after(closure, step))

    def _recording_after(self, closure: Callable[[], Any], step: int) -> Callable[[], Any]:
        recorded = False

        def recording() -> Any:
            nonlocal recorded
            current = self._current
            current.closure_step, current.repeated = step, recorded
            try:
                value = closure()
            except BaseException:
                if not recorded:
                    current.guard.step(step, lambda: self._undo(step))
                raise
            finally:
                current.closure_step, current.repeated = None, False
            if not recorded:
                recorded = True
                self._complete(step)
            return value

        return recording

    def _undo(self, step: int) -> None:
        """The step did not take place: the next one gets its number."""
        self._current.number = step
        self._current.rows.undo()
        self._current.over()

    def _complete(self, step: int) -> None:
        current = self._current
        if step >= current.rows.due:
            current.guard.step(step, lambda: current.complete(step, self._before_rows))
            return
        if current.rows.pending:  # of the step before, which waited for their loss
            current.guard.step(step, current.rows.hand_over)
        current.seen.forget()
        if current.rows.pieces and step + 1 == current.rows.due:  # they begin before their step
            current.guard.step(step, current.look_ahead)

    def _before_rows(self) -> None:
        if not self._current.rows.settled:
            self._unclip()
        self._current.seen.at_step(self._current.training.optimizers[0])

    def _unclip(self) -> None:
        self._current.unclip(self._current.marks.changed())

    def before_scaler(self) -> None:
        """Stage what shows the gradients before they are divided."""
        if self._current.number >= self._current.rows.due:
            self._unclip()
            self._current.rows.settle(self._current.number)

    def after_scaler(self, number: int, before: int) -> None:
        """Complete a step that the scaler has skipped."""
        if self._current.number == before:
            self._current.number += 1
            self._current.seen.skipped = True
            self._complete(before)

    def before_clipping(self, indices: set[int]) -> None:
        """Stage the rows that show gradients before clipping."""
        self._unclip()
        self._current.rows.take_before(self._current.active)

    def arrived(self, index: int) -> None:
        """Nothing: the step under way is over with the optimizer's call alone."""

    def is_over(self, index: int) -> bool:
        """Never: the optimizer updates all parameters at once."""
        return False

    def finish(self) -> None:
        """Nothing: no step waits for more."""

    @property
    def last_rows(self) -> list[Slot]:
        """The rows that wait for the next step to begin."""
        return self._current.rows.pending


class SeveralOptimizers:
    """A step is over when one of its optimizers is called again.

    Or when a parameter that one of them has updated gets another gradient. An optimizer in
    backward is a list of optimizers of one parameter each.

    Args:
        current: The step under way.
        held: Indices of the recorded parameters of each optimizer.
    """

    def __init__(self, current: CurrentStep, held: Sequence[Sequence[int]]) -> None:
        self._current = current
        self._held = held
        self._owner = {index: n for n, indices in enumerate(held) for index in indices}
        self._stepped: set[int] = set()  # numbers of the optimizers called in this step
        self._early: set[int] = set()  # indices of gradients put before clipping

    def before_call(
        self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Take the gradients of one optimizer; a second call of it begins the next step."""
        if number in self._stepped:
            self.finish()
        self._take(number)
        return None

    def _take(self, number: int) -> None:
        self._current.piece(lambda: self._take_held(number))
        self._stepped.add(number)

    def _take_held(self, number: int) -> None:
        current, changed = self._current, self._unclip()
        current.seen.at_step(current.training.optimizers[number])
        if not current.rows.open:
            return
        held = self._held[number]
        for index in held:
            early = index in self._early and index not in changed
            current.put(index, ("clipped",) if early else ("reduced", "clipped"))
        current.rows.weigh(held)

    def _unclip(self) -> set[int]:
        """Indices of gradients that are not as clipping left them."""
        changed = {index for index in self._current.marks.changed() if not self.is_over(index)}
        self._current.unclip(changed)
        return changed

    def before_scaler(self) -> None:
        """Nothing: each optimizer's gradients are taken at its own call."""

    def after_scaler(self, number: int, before: int) -> None:
        """Take the gradients of an optimizer that the scaler has left out."""
        if number not in self._stepped:
            self._current.seen.skipped = True
            self._take(number)

    def before_clipping(self, indices: set[int]) -> None:
        """Put the gradients that are clipped into the rows before clipping."""
        changed = self._unclip()
        for index in (indices - self._early) | (self._early & changed):
            self._current.put(index, ("reduced",))
        self._early |= indices

    def arrived(self, index: int) -> None:
        """Another gradient of a parameter that is updated already belongs to the next step."""
        if self.is_over(index):
            self.finish()

    def is_over(self, index: int) -> bool:
        """Whether the optimizer of this parameter was called in the step under way."""
        return self._owner.get(index) in self._stepped

    def finish(self) -> None:
        """Complete the step under way, if an optimizer was called in it."""
        if self._stepped:
            step = self._current.begin()
            self._stepped, self._early = set(), set()
            current = self._current
            current.guard.step(step, lambda: current.complete(step, lambda: None))

    @property
    def last_rows(self) -> list[Slot]:
        """The rows under way: the step just done is over when the next one begins."""
        slots = (source.slot for source in self._current.rows.open)
        return [slot for slot in slots if slot is not None]
