"""The handle of a running recording: it hooks into the training and says what it saw."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.recording import registry, surroundings
from gradstats.recording.circumstances import Circumstances
from gradstats.recording.guard import Guard
from gradstats.recording.hooking import LocalHooks, closure_of, hook_first, with_closure
from gradstats.recording.mentions import farewell, surprises
from gradstats.recording.reports import Reports
from gradstats.recording.rows import Plan, Rows
from gradstats.recording.slots import LOSS
from gradstats.recording.staging import Source
from gradstats.recording.stats import Spent, Stats, stats_of
from gradstats.recording.training import Training, weakly
from gradstats.recording.writing import OnSummary, Writer
from gradstats.store import Place


class Capture:
    """A running recording; made by `capture`. Also a context manager, which closes it.

    Nothing here raises into the training: what fails is counted and said once on stderr.

    A step is one call of the optimizer, also one that a GradScaler skips. With several optimizers
    (an optimizer in backward) it is over when one of them is called again, or when a parameter
    that one of them updated gets another gradient.

    It keeps neither model nor optimizer alive. It is kept by the optimizer and by whoever has it
    in a variable, and closes by itself when both are gone, or when model and optimizers are.

    Attributes:
        step: Number the next optimizer step gets: what a restart passes as ``start_step``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        tensors: Sequence[nn.Parameter],
        sources: Sequence[Source],
        writer: Writer,
        plan: Plan,
        reports: Reports,
        on_summary: OnSummary | None = None,
    ) -> None:
        self.step = plan.start_step
        self._training = Training(model, optimizers, weakly(self._give_up))
        self._on_summary = on_summary  # held for the writer, whose thread must not
        self._groups = [len(optimizer.param_groups) for optimizer in optimizers]
        self._together = len(optimizers) == 1
        self._tensors = list(tensors)
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self._writer = writer
        self._reports = reports
        self._seen = Circumstances(plan.world_size)
        rest = replace(plan, count_backwards=None)  # that leads to the model
        self._rows = Rows(sources, writer, rest, reports, self._seen, together=self._together)
        self._guard = Guard(reports)
        self._left = False
        self._leaving = threading.Lock()
        self._inside: int | None = None  # the step whose closure runs for the first time
        self._again = False  # a closure runs again: those gradients are no row's
        self._stepped: set[int] = set()  # optimizers of a list that were called in this step
        self._early: set[int] = set()  # places put before clipping
        groups = [optimizer.param_groups for optimizer in optimizers]
        self._held = [list(self._places_of(group)) for group in groups]
        self._owner = {place: n for n, places in enumerate(self._held) for place in places}
        local = any(source.point == "local" for source in sources) and not plan.by_comm_hook
        after = weakly(self._after_accumulation)
        self._local_hooks = LocalHooks(self._tensors if local else [], after)
        self._hooks: list[Any] = []
        try:
            for hook in self._attach(plan, counting=not local):
                self._hooks.append(hook)
            surroundings.listen(self)
            self._look_ahead()
        except BaseException:
            self.detach()
            raise

    @property
    def _optimizers(self) -> list[Optimizer]:
        return self._training.optimizers

    @property
    def stepping(self) -> bool:
        """Whether an optimizer is there that may take another step."""
        return self._training.stepping

    @property
    def place(self) -> Path | Place:
        """Where the store is."""
        return self._writer.place

    @property
    def stats(self) -> Stats:
        """What was recorded by now."""
        return stats_of(self._writer, self._spent)

    @property
    def _spent(self) -> Spent:
        first, last = self._guard.span or (0.0, 0.0)
        rows = self._rows
        return Spent(rows.dropped, rows.thinned, self._guard.seconds, last - first)

    def log(self, *, loss: Tensor | float) -> None:
        """Attach the loss to the step just done, without waiting for the device.

        Call it after ``optimizer.step()`` and before the next one; on steps that are not recorded
        it does nothing.
        """

        def note() -> None:
            slots = self._rows.pending
            if not self._together:  # the step just done is over when the next one begins
                slots = [source.slot for source in self._rows.open if source.slot is not None]
            for slot in slots:
                slot.note(LOSS, loss)

        def failed(error: Exception) -> None:
            self._reports.once("loss", f"cannot log the loss: {_fact(error)}; training goes on")

        self._guard.piece(note, failed)

    def close(self) -> None:
        """Store what was recorded, detach from the optimizer and print what was recorded.

        An interrupt (Ctrl-C) meanwhile loses nothing: the writer's thread finishes by itself, and
        a second call waits for it.
        """
        self._leave()
        self._writer.join()

    def _give_up(self) -> None:
        """Close without waiting: nobody trains any more what is recorded."""
        self._leave("its optimizer is gone, which ends the recording: ")

    def _leave(self, why: str = "") -> None:
        """Detach, and leave the rest to the writer's thread; waits for nothing."""
        if self._left or self._guard.forked or not self._leaving.acquire(blocking=False):
            return  # the garbage collector may come here at any time, in any thread
        try:
            self._end(why)
        finally:
            self._leaving.release()

    def _end(self, why: str) -> None:
        try:
            if self._stepped:
                self._finish_round()
            self.detach()
            self._rows.hand_over()
            self._rows.abandon()
        except Exception as error:
            self._reports.once("close", f"cannot finish {self._writer.where}: {_fact(error)}")
        last = partial(farewell, self._reports, self._writer, self._spent, self._rows.table, why)
        self._writer.end(last, self._on_summary)
        self._left = True
        registry.closed(self)
        # whoever keeps the handle keeps no parameters
        self._tensors = []
        self._local_hooks = LocalHooks([], lambda _: None)
        self._on_summary = None
        self._rows.release()
        self._training.forget()

    def detach(self) -> None:
        """Take all hooks off; nothing is recorded any more."""
        self._guard.closed = True
        surroundings.forget(self)
        self._local_hooks.want(False)
        for hook in self._hooks:
            hook.remove()

    def __del__(self) -> None:
        if hasattr(self, "_hooks"):  # else the constructor failed before there was anything
            self._give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Capture {self._writer.where!r}, step {self.step}: {self.stats}>"

    # --- what hooks see ---

    def _places_of(self, groups: Sequence[dict[str, Any]]) -> Iterator[int]:
        held = (id(tensor) for group in groups for tensor in group["params"])
        return (self._places[key] for key in held if key in self._places)

    def _attach(self, plan: Plan, *, counting: bool) -> Iterator[Any]:
        for number, optimizer in enumerate(self._optimizers):
            hook = self._before_step if self._together else self._before_part(number)
            yield optimizer.register_step_pre_hook(hook)
        if plan.count_backwards is not None:
            yield from plan.count_backwards(weakly(self._after_backward))
        elif counting:
            trained = [place for place, one in enumerate(self._tensors) if one.requires_grad]
            place = trained[-1] if trained else len(self._tensors) - 1
            count = weakly(self._after_backward)
            yield hook_first(self._tensors[place], lambda _: count(place))

    def _after_backward(self, place: int | None = None) -> None:
        if place is not None:
            self._begin_round_with(place)
        self._seen.backwards += not self._again

    def _after_accumulation(self, place: int) -> None:
        self._begin_round_with(place)
        if self._rows.open and not self._again:
            self._put(place, ("local",))

    def _put(self, place: int, points: Collection[str], grad: Tensor | None = None) -> None:
        self._guard.piece(
            lambda: self._rows.put(place, points, grad),
            lambda error: self._rows.give_up(self.step, error),
        )

    def put_local(self, parameter: Tensor, grad: Tensor) -> None:
        """Copy a local gradient that a communication hook was given."""
        if self._rows.open and id(parameter) in self._places and not self._again:
            self._put(self._places[id(parameter)], ("local",), grad)

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Stage the rows that show gradients before clipping."""
        if self._again or self._places.keys().isdisjoint(map(id, parameters)):
            return
        if not self._together and self._rows.open:
            places = {self._places[id(one)] for one in parameters if id(one) in self._places}
            for place in places - self._early:
                self._put(place, ("reduced",))
            self._early |= places
        step = self.step if self._inside is None else self._inside
        if step >= self._rows.due and self._rows.before:
            self._guard.step(step, lambda: self._rows.take_before(step))

    def after_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Note the norm, if it is that of all gradients there are."""
        if self._again or self._places.keys().isdisjoint(map(id, parameters)):
            return
        step = self.step if self._inside is None else self._inside
        if step < self._rows.due:
            return
        clipped = set(map(id, parameters))
        left = any(id(one) not in clipped and one.grad is not None for one in self._tensors)
        self._seen.clip(norm, limit, whole=not left)

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Call ``step``; when it leaves the optimizer out, record what it was not given."""
        numbers = [n for n, one in enumerate(self._optimizers) if one is optimizer]
        if not numbers:
            return step()
        self._seen.scale(scaler, optimizer)
        before = self.step
        result = step()
        if self._together and self.step == before:
            self.step += 1
            self._seen.skipped = True
            self._complete(before)
        elif not self._together and numbers[0] not in self._stepped:
            self._seen.skipped = True
            self._take_part(numbers[0])
        return result

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        step = self.step
        self.step = step + 1
        self._seen.tick()
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
            self._inside, self._again = step, recorded
            try:
                value = closure()
            except BaseException:
                if not recorded:
                    self._guard.step(step, lambda: self._undo(step))
                raise
            finally:
                self._inside, self._again = None, False
            if not recorded:
                recorded = True
                self._complete(step)
            return value

        return recording

    def _before_part(self, number: int) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if number in self._stepped:
                self._finish_round()
            self._take_part(number)

        return before

    # --- a step ---

    def _complete(self, step: int) -> None:
        if step >= self._rows.due:
            self._guard.step(step, lambda: self._record(step))
            return
        if self._rows.pending:  # of the step before, which waited for their loss
            self._guard.step(step, self._rows.hand_over)
        self._seen.forget()
        if self._rows.pieces and step + 1 == self._rows.due:  # they begin before their step
            self._guard.step(step, self._look_ahead)

    def _undo(self, step: int) -> None:
        """The step did not take place: the next one gets its number."""
        self.step = step
        self._rows.undo()
        self._seen.forget()
        self._look_ahead()

    def _take_part(self, number: int) -> None:
        """One optimizer of a list gets its gradients."""
        self._stepped.add(number)
        self._seen.at_step(self._optimizers[number])
        for place in self._held[number] if self._rows.open else ():
            late = ("clipped",) if place in self._early else ("reduced", "clipped")
            self._put(place, late)

    def _begin_round_with(self, place: int) -> None:
        """Another gradient of a parameter that was updated already is the next step's."""
        if self._stepped and self._owner.get(place) in self._stepped:
            self._finish_round()

    def _finish_round(self) -> None:
        """All optimizers had their turn."""
        step = self.step
        self.step += 1
        self._seen.tick()
        self._stepped, self._early = set(), set()
        self._guard.step(step, lambda: self._record(step))

    def _record(self, step: int) -> None:
        try:
            for subject, text in surprises(self._optimizers, self._groups, self._seen):
                self._reports.once(subject, text)
            if self._together:
                self._seen.at_step(self._optimizers[0])
            self._rows.complete(step, self._optimizers[0])
        finally:
            self._seen.forget()
            self._look_ahead()

    def _look_ahead(self) -> None:
        self._rows.look_ahead(self.step)
        # with several optimizers, a hook on a parameter says when a step is over
        self._local_hooks.want(bool(self._rows.open) or not self._together)


def _fact(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
