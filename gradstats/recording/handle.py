"""The handle of a running recording: it hooks into the training and says what it saw."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.recording import registry, torch_patches
from gradstats.recording.guard import Guard
from gradstats.recording.hooks import (
    LocalHooks,
    closure_of,
    hook_first,
    ids_held,
    inside,
    untraced,
    with_closure,
)
from gradstats.recording.marks import Marks
from gradstats.recording.mentions import farewell, surprises
from gradstats.recording.messages import Reports
from gradstats.recording.pseudo import checked_gradients, checked_steps
from gradstats.recording.rows import Plan, Rows
from gradstats.recording.slots import LOSS
from gradstats.recording.staging import Source
from gradstats.recording.stats import Spent, Stats, stats_of
from gradstats.recording.step_context import Circumstances
from gradstats.recording.training import Training, weakly
from gradstats.recording.writer import OnSummary, Writer
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
        step: Number the next optimizer step gets: what a restart passes as ``start_step``. Where
            pseudo-gradients alone are recorded, the number of the next round.
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
        self._passive = all(source.point == "outer" for source in sources)
        self._together = len(optimizers) == 1 or self._passive
        self._tensors = list(tensors)
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self._writer = writer
        self._reports = reports
        self._seen = Circumstances(plan.world_size)
        self._marks, self._made = Marks(self._tensors), Marks(self._tensors)
        rest = replace(plan, count_backwards=None)  # that leads to the model
        self._rows = Rows(
            sources, writer, rest, reports, self._seen, self._marks, together=self._together
        )
        self._rows.counted = plan.count_backwards is not None
        self._guard = Guard(reports)
        self._left = False
        self._leaving = threading.Lock()
        self._inside: int | None = None  # the step whose closure runs for the first time
        self._again = False  # a closure runs again: those gradients are no row's
        self._stepped: set[int] = set()  # optimizers of a list that were called in this step
        self._early: set[int] = set()  # places put before clipping
        self._unrecorded = 0  # steps of other optimizers over recorded parameters
        self._ids = ids_held(optimizers)
        groups = [optimizer.param_groups for optimizer in optimizers]
        self._held = [list(self._places_of(group)) for group in groups]
        self._owner = {place: n for n, places in enumerate(self._held) for place in places}
        self._names = plan.names
        local = any(source.point == "local" for source in sources) and not plan.by_comm_hook
        after = weakly(self._after_accumulation)
        self._local_hooks = LocalHooks(self._tensors if local else [], after)
        self._hooks: list[Any] = []
        try:
            for hook in () if self._passive else self._attach(plan, counting=not local):
                self._hooks.append(hook)
            if not self._passive:
                torch_patches.listen(self)
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
        rows, unrecorded = self._rows, self._unrecorded
        return Spent(rows.dropped, rows.thinned, unrecorded, self._guard.seconds, last - first)

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

    def record(self, gradients: Mapping[str, Tensor], *, inner_steps: int = 0) -> None:
        """Store a row of pseudo-gradients, at the point "outer".

        Call it once per round on every worker, before the pseudo-gradients are averaged. Where
        nothing else is recorded the round is over with this call; else with the outer optimizer's
        step. What cannot be stored is counted as a dropped row and printed once.

        Args:
            gradients: By name as ``model.named_parameters()`` has it, what the worker gives to the
                outer optimizer: its parameters at the start of the round minus those now. Those
                that capture was told not to record are ignored; those missing have no gradient.
                In the parameter's dtype, or one that it holds exactly.
            inner_steps: Steps of the inner optimizer in this round; 0 where not known.
        """
        if self._guard.away:
            return
        if not self._rows.named:
            text = "record() stores rows at the point 'outer', which capture was not asked for"
            self._reports.once("record", f"{text}; pass at='outer'")
            return
        if self._stepped:
            self._finish_round()
        elif self._seen.inner_steps is not None:  # the round before went without a step
            self._end_round()
        step = self.step
        self._guard.step(step, lambda: self._take_named(step, gradients, inner_steps))
        if self._passive:
            self._end_round()

    def _take_named(self, step: int, gradients: Mapping[str, Tensor], inner_steps: int) -> None:
        self._seen.inner_steps = 0
        if step < self._rows.due:
            return
        try:
            self._seen.inner_steps = checked_steps(inner_steps)
            grads = checked_gradients(gradients, self._names, self._rows.table)
            self._rows.take_named(step, grads)
        except Exception as error:
            self._rows.dropped += 1
            text = f"cannot record the pseudo-gradients of round {step}: {_fact(error)}"
            self._reports.once("pseudo", f"{text}; such rows are dropped, training goes on")

    def _end_round(self) -> None:
        """The rows of pseudo-gradients are complete, and no others belong to the step."""
        step = self.step
        self.step += 1
        self._seen.tick()

        def end() -> None:
            try:
                self._rows.complete_named(step, self._optimizers[0])
            finally:
                self._seen.forget()
                self._look_ahead()

        self._guard.step(step, end)

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
            if self._seen.inner_steps is not None:
                self._end_round()
            self.detach()
            self._rows.undo()  # what was staged at a clipping that no step followed
            self._rows.hand_over()
        except Exception as error:
            self._reports.once("close", f"cannot finish {self._writer.where}: {_fact(error)}")
        last = partial(farewell, self._reports, self._writer, self._spent, self._rows.table, why)
        self._writer.end(last, self._on_summary)
        self._left = True
        registry.closed(self)
        # whoever keeps the handle keeps no parameters
        self._tensors = []
        self._marks.forget()
        self._made.forget()
        self._local_hooks = LocalHooks([], lambda _: None)
        self._on_summary = None
        self._rows.release()
        self._training.forget()

    def detach(self) -> None:
        """Take all hooks off; nothing is recorded any more."""
        self._guard.closed = True
        torch_patches.forget(self)
        self._local_hooks.want(False)
        while self._hooks:
            self._hooks.pop().remove()

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
            yield optimizer.register_step_pre_hook(untraced(hook))
        self._counts = self._together and plan.count_backwards is None
        if any(tensor.grad is not None for tensor in self._tensors):
            self._seen.backwards = None  # how many there were before, nobody knows
            self._made.mark()
        if plan.count_backwards is not None:
            yield from plan.count_backwards(weakly(self._after_backward))
        elif counting and not self._together:
            trained = [place for place, one in enumerate(self._tensors) if one.requires_grad]
            place = trained[-1] if trained else len(self._tensors) - 1
            count = weakly(self._after_backward)
            yield hook_first(self._tensors[place], lambda _: count(place))

    def _after_backward(self, place: int | None = None) -> None:
        if place is not None:
            self._begin_round_with(place)
        if not self._again:
            self._seen.count_backward()

    def before_backward(self) -> None:
        """Without gradients, the next backward pass is the first of its step."""
        if self._counting and all(tensor.grad is None for tensor in self._tensors):
            self._seen.backwards = 0

    def after_backward(self) -> None:
        """Count a backward pass that made or changed recorded gradients of the step to come."""
        if self._counting:
            self._guard.piece(self._count_backward, self._failed)

    @property
    def _counting(self) -> bool:
        step = self.step if self._inside is None else self._inside
        return self._counts and step >= self._rows.due and not self._again

    def _count_backward(self) -> None:
        changed = self._made.changed(range(len(self._tensors)))
        self._made.mark(changed)
        if any(self._tensors[place].grad is not None for place in changed):
            self._seen.count_backward()

    def zeroed(self, parameters: Iterable[Tensor]) -> None:
        """What was seen of these gradients belongs to a batch that makes no step."""
        if (self.step if self._inside is None else self._inside) < self._rows.due:
            return
        if not self._again:
            self._guard.piece(lambda: self._leave_out(parameters), self._failed)

    def _leave_out(self, parameters: Iterable[Tensor]) -> None:
        places = (self._places[id(one)] for one in parameters if id(one) in self._places)
        left_out = {place for place in places if not self._is_over(place)}
        if left_out:
            self._seen.backwards = 0
            self._rows.restart(left_out)

    def _failed(self, error: Exception) -> None:
        self._reports.once("hook", f"cannot record step {self.step}: {_fact(error)}")

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
        self.put_locals([parameter], lambda: [(parameter, grad, False)])

    def put_locals(
        self,
        parameters: Iterable[Tensor],
        found: Callable[[], Iterable[tuple[Tensor, Tensor, bool]]],
    ) -> None:
        """Copy local gradients that a reduction was given, or add them to those of the step.

        Args:
            parameters: Whose gradients are reduced.
            found: Called where a row is due; yields parameters, gradients, and whether those are
                to be added to what the row holds.
        """
        for parameter in () if self._together else parameters:
            self._begin_round_with(self._places.get(id(parameter), -1))

        def put() -> None:
            for parameter, grad, add in found():
                if id(parameter) in self._places:
                    self._rows.put(self._places[id(parameter)], ("local",), grad, add=add)

        if self._rows.open and not self._again:
            self._guard.piece(put, lambda error: self._rows.give_up(self.step, error))

    def remove_at_close(self, hook: Any) -> None:
        """Call ``hook.remove()`` when the recording is closed."""
        self._hooks.append(hook)

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Stage the rows that show gradients before clipping."""
        if self._ignores_clipping(parameters):
            return
        places = {self._places[id(one)] for one in parameters if id(one) in self._places}
        if any(map(self._is_over, places)):
            self._finish_round()
        step = self.step if self._inside is None else self._inside
        if step >= self._rows.due:
            self._guard.step(step, lambda: self._before_clipping(step, places))

    def _before_clipping(self, step: int, places: set[int]) -> None:
        changed = self._unclip()
        if self._together:
            self._rows.take_before(step)
            return
        for place in (places - self._early) | (self._early & changed):
            self._put(place, ("reduced",))
        self._early |= places

    def _unclip(self) -> set[int]:
        """Places whose gradient is not as clipping left it; the norm of those is not theirs."""
        changed = {place for place in self._marks.changed() if not self._is_over(place)}
        self._seen.unclip(changed)
        return changed

    def _is_over(self, place: int) -> bool:
        """Has an optimizer of a list updated this parameter in the round under way?"""
        return self._owner.get(place) in self._stepped

    def _ignores_clipping(self, parameters: list[Tensor]) -> bool:
        """Is it of gradients that no row is about?"""
        if self._rows.named and self._seen.inner_steps is None:
            return True  # an inner step: the round's pseudo-gradient is not there yet
        return self._again or self._places.keys().isdisjoint(map(id, parameters))

    def after_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Note the norm, if it is that of all gradients there are."""
        if self._ignores_clipping(parameters):
            return
        step = self.step if self._inside is None else self._inside
        if step < self._rows.due:
            return
        clipped = {self._places[id(one)] for one in parameters if id(one) in self._places}
        self._guard.piece(lambda: self._note_clipping(clipped, limit, norm), self._failed)

    def _note_clipping(self, clipped: set[int], limit: float, norm: Tensor) -> None:
        others = (one for place, one in enumerate(self._tensors) if place not in clipped)
        left = any(one.grad is not None for one in others)
        self._seen.clip(norm, limit, clipped, whole=not left)
        self._marks.mark()

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Call ``step``; when it leaves the optimizer out, record what it was not given."""
        numbers = [n for n, one in enumerate(self._optimizers) if one is optimizer]
        if not numbers:
            return step()
        before = self.step
        self._guard.piece(lambda: self._before_scaling(before, scaler, optimizer), self._failed)
        try:
            result = step()
        except BaseException:
            self._rows.settled = False  # no step: the gradients may change yet
            raise
        if self._together and self.step == before:
            self.step += 1
            self._seen.skipped = True
            self._complete(before)
        elif not self._together and numbers[0] not in self._stepped:
            self._seen.skipped = True
            self._take_part(numbers[0])
        return result

    def _before_scaling(self, step: int, scaler: Any, optimizer: Any) -> None:
        self._seen.scale(scaler, optimizer)
        if self._together and step >= self._rows.due:
            self._unclip()
            self._rows.settle(step)

    def other_step(self, optimizer: Optimizer) -> None:
        """Another optimizer may be about to update recorded parameters: count it, say it once."""
        if any(optimizer is one for one in self._optimizers) or self._guard.away:
            return
        if not self._rows.named:  # else it is an inner optimizer
            self._guard.piece(lambda: self._note_other(optimizer), self._failed)

    def _note_other(self, optimizer: Optimizer) -> None:
        if self._places.keys().isdisjoint(ids_held([optimizer])) or inside(self._optimizers):
            return
        self._unrecorded += 1
        name = type(optimizer).__name__
        text = f"another optimizer ({name}) updates recorded parameters: its steps are no rows"
        self._reports.once("other", f"{text}; capture with it, or with all of them as a list")

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
        self._marks.clear()
        self._look_ahead()

    def _take_part(self, number: int) -> None:
        """One optimizer of a list gets its gradients."""
        self._guard.piece(lambda: self._take_held(number), self._failed)
        self._stepped.add(number)

    def _take_held(self, number: int) -> None:
        changed = self._unclip()
        self._seen.at_step(self._optimizers[number])
        if not self._rows.open:
            return
        held = self._held[number]
        for place in held:
            early = place in self._early and place not in changed
            self._put(place, ("clipped",) if early else ("reduced", "clipped"))
        self._rows.weigh(held)

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
            for subject, text in surprises(self._optimizers, self._ids, self._places, self._seen):
                self._reports.once(subject, text)
            if self._together:
                if not self._rows.settled:
                    self._unclip()
                self._seen.at_step(self._optimizers[0])
            self._rows.complete(step, self._optimizers[0])
        finally:
            self._seen.forget()
            self._marks.clear()
            self._look_ahead()

    def _look_ahead(self) -> None:
        self._rows.look_ahead(self.step)
        # with several optimizers, a hook on a parameter says when a step is over
        self._local_hooks.want(bool(self._rows.open) or not self._together)


def _fact(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
