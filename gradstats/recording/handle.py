"""The handle of a running recording: hooked into the training, and closed with it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.recording import registry, torch_patches
from gradstats.recording.admission import Plan
from gradstats.recording.backward_passes import BackwardPasses, count_by_hook
from gradstats.recording.current_step import CurrentStep
from gradstats.recording.guard import Guard
from gradstats.recording.hooks import LocalHooks, ids_held, untraced
from gradstats.recording.marks import Marks
from gradstats.recording.messages import Reports, lost_loss, print_summary
from gradstats.recording.observer import Observer, Reduced
from gradstats.recording.rounds import Rounds
from gradstats.recording.rows import Rows
from gradstats.recording.slots import LOSS
from gradstats.recording.staging import Source
from gradstats.recording.stats import Spent, Stats, stats_of
from gradstats.recording.step_context import Circumstances
from gradstats.recording.step_detectors import (
    Arguments,
    OneOptimizer,
    SeveralOptimizers,
    StepDetector,
)
from gradstats.recording.training import Training, weakly
from gradstats.recording.writer import OnSummary, Writer
from gradstats.store import Place


class Capture:
    """A running recording, as returned by `capture`; also a context manager, which closes it.

    Nothing raises into the training: a fault is counted, and printed once on stderr.

    A step is one call of the optimizer, also one that a GradScaler skips. With several optimizers
    (an optimizer in backward) it is over when one of them is called again, or when a parameter
    that one of them updated gets another gradient.

    It keeps neither model nor optimizer alive. The optimizer and any variable that holds it keep
    it alive; it closes by itself when both are gone, or when model and optimizers are.

    Attributes:
        step: Number the next optimizer step gets: what a restart passes as `start_step`. Where
            pseudo-gradients alone are recorded, the number of the next round.
        observer: What torch's functions and hooks call.
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
        self._training = Training(model, optimizers, weakly(self._give_up))
        self._on_summary = on_summary  # held for the writer, whose thread must not
        self._writer, self._reports, self._guard = writer, reports, Guard(reports)
        self._left, self._leaving = False, threading.Lock()
        self._hooks: list[Any] = []
        alone = all(source.point == "outer" for source in sources)
        together = len(optimizers) == 1 or alone
        local = any(source.point == "local" for source in sources) and not plan.by_comm_hook
        # with several optimizers, a hook on a parameter shows that a step is over
        arrived = weakly(self._after_accumulation)
        hooks = LocalHooks(tensors if local else [], arrived, always=not together)
        self._rows, self._current = self._first_step(tensors, sources, plan, hooks, together)
        self._rounds = Rounds(self._current, plan.names, alone=alone)
        self._detector = self._detector_of(optimizers, together=together)
        by_call = together and plan.count_backwards is None
        self._passes = BackwardPasses(self._current, by_call=by_call)
        self.observer = Observer(self._current, self._detector, self._rounds, self._passes)
        try:
            if not alone:
                self._attach(plan, by_hook=not local and not together)
            self._current.look_ahead()
        except BaseException:
            self.detach()
            raise

    def _first_step(
        self,
        tensors: Sequence[nn.Parameter],
        sources: Sequence[Source],
        plan: Plan,
        hooks: LocalHooks,
        together: bool,
    ) -> tuple[Rows, CurrentStep]:
        seen, marks = Circumstances(plan.world_size), Marks(list(tensors))
        rest = replace(plan, count_backwards=None)  # that leads to the model
        rows = Rows(sources, self._writer, rest, self._reports, seen, marks, together=together)
        rows.counted = plan.count_backwards is not None
        known = (plan.start_step, self._training, list(tensors), rows, seen, marks)
        return rows, CurrentStep(*known, self._guard, self._reports, hooks)

    def _detector_of(self, optimizers: Sequence[Optimizer], *, together: bool) -> StepDetector:
        if together:
            return OneOptimizer(self._current)
        index = self._current.index
        held = [[index[key] for key in ids_held([one]) if key in index] for one in optimizers]
        return SeveralOptimizers(self._current, held)

    def _attach(self, plan: Plan, *, by_hook: bool) -> None:
        for hook in self._attached(plan, by_hook=by_hook):
            self._hooks.append(hook)
        torch_patches.listen(self.observer)

    def _attached(self, plan: Plan, *, by_hook: bool) -> Iterator[Any]:
        for number, optimizer in enumerate(self._training.optimizers):
            yield optimizer.register_step_pre_hook(untraced(self._before_call(number)))
        after = weakly(self.observer.after_backward_hook)
        if plan.count_backwards is not None:
            yield from plan.count_backwards(after)
        elif by_hook:
            yield from count_by_hook(self._current, after)

    # --- the recording ---

    @property
    def step(self) -> int:
        """Number the next optimizer step gets."""
        return self._current.number

    @property
    def stepping(self) -> bool:
        """Whether an optimizer is left that may take another step."""
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
        rows, unrecorded = self._rows, self.observer.unrecorded
        return Spent(rows.dropped, rows.thinned, unrecorded, self._guard.seconds, last - first)

    def log(self, *, loss: Tensor | float) -> None:
        """Attach the loss to the step just done, without waiting for the device.

        Call it after `optimizer.step()` and before the next one; on steps that are not recorded
        it does nothing.

        Args:
            loss: A number, or a tensor of one element.
        """
        if self._left:
            self._reports.once("loss", f"cannot log the loss: {self._writer.where} is closed")
            return

        def note() -> None:
            for slot in self._detector.last_rows:
                slot.note(LOSS, loss)

        self._guard.piece(note, partial(lost_loss, self._reports, loss))

    def record(self, gradients: Mapping[str, Tensor], *, inner_steps: int = 0) -> None:
        """Store a row of pseudo-gradients, at the point "outer".

        Call it once per round on every worker, before the pseudo-gradients are averaged. Where
        nothing else is recorded the round is over with this call; else with the outer optimizer's
        step. What cannot be stored is counted as a dropped row and printed once.

        Args:
            gradients: By name as `model.named_parameters()` has it, what the worker gives to the
                outer optimizer: its parameters at the start of the round minus those now. Those
                that capture does not record are ignored; those missing have no gradient.
                In the parameter's dtype, or one that it holds exactly.
            inner_steps: Steps of the inner optimizer in this round; 0 where not known.
        """
        if self._guard.away:
            return
        if not self._rows.named:
            text = "record() stores rows at the point 'outer', which capture was not asked for"
            self._reports.once("record", f"{text}; pass at='outer'")
            return
        self._detector.finish()
        self._rounds.record(gradients, inner_steps)

    def put_local(self, parameter: Tensor, grad: Tensor) -> None:
        """Copy a local gradient that a communication hook was given."""
        self.observer.put_locals([parameter], lambda: [(parameter, grad, False)])

    def put_locals(
        self, parameters: Iterable[Tensor], gradients: Callable[[], Iterable[Reduced]]
    ) -> None:
        """Copy local gradients that a reduction was given, or add them to those of the step.

        Args:
            parameters: Whose gradients are reduced.
            gradients: Called where a row is due; yields parameters, gradients, and whether those
                are to be added to what the row holds.
        """
        self.observer.put_locals(parameters, gradients)

    def remove_at_close(self, hook: Any) -> None:
        """Call `hook.remove()` when the recording is closed."""
        self._hooks.append(hook)

    def close(self) -> None:
        """Store what was recorded, detach from the optimizer and print what was recorded.

        An interrupt (Ctrl-C) meanwhile loses nothing: the writer's thread finishes by itself, and
        a second call waits for it.
        """
        self._leave()
        self._writer.join()

    def _give_up(self) -> None:
        """Close without waiting: nothing trains any more what is recorded."""
        self._leave("its optimizer is gone, which ends the recording: ")

    def _leave(self, why: str = "") -> None:
        """Detach, and leave the rest to the writer's thread; waits for nothing."""
        if self._left or self._guard.forked or not self._leaving.acquire(blocking=False):
            return  # the garbage collector may come at any time, in any thread
        try:
            self._end(why)
        finally:
            self._leaving.release()

    def _end(self, why: str) -> None:
        try:
            self._detector.finish()
            self._rounds.finish()
            self.detach()
            self._rows.undo()  # what was staged at a clipping that no step followed
            self._rows.hand_over()
        except Exception as error:
            fact = f"{type(error).__name__}: {error}"
            self._reports.once("close", f"cannot finish {self._writer.where}: {fact}")
        table = self._rows.table
        last = partial(print_summary, self._reports, self._writer, self._spent, table, why)
        self._writer.end(last, self._on_summary)
        self._left = True
        registry.closed(self)
        self._current.release()
        self._passes.forget()
        self._on_summary = None

    def detach(self) -> None:
        """Remove all hooks; nothing is recorded any more."""
        self._guard.closed = True
        torch_patches.forget(self.observer)
        self._current.local_hooks.remove()
        while self._hooks:
            self._hooks.pop().remove()

    def __del__(self) -> None:
        if hasattr(self, "observer"):  # else the constructor failed before there was anything
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

    def _before_call(self, number: int) -> Callable[..., Arguments | None]:
        """A hook that an optimizer calls; it keeps the recording alive."""

        def before(
            _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Arguments | None:
            return self._detector.before_call(number, args, kwargs)

        return before

    def _after_accumulation(self, index: int) -> None:
        self.observer.after_accumulation(index)
