"""The handle of a running recording: an optimizer hook that stages rows for the writer."""

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, no_grad
from torch.optim import Optimizer

from gradstats.recording.budget import Budget
from gradstats.recording.reports import Reports
from gradstats.recording.schedules import Schedule
from gradstats.recording.staging import LEARNING_RATE, LOSS, Kind, Slot, Source
from gradstats.recording.stats import Stats
from gradstats.recording.writing import Writer
from gradstats.store import GradientStore

#: Bytes of one row beside its elements and its present table: coordinates and padding.
_COORDINATE_BYTES = 128


@dataclass(frozen=True)
class Plan:
    """What a recording is to do.

    Attributes:
        schedule: Which steps get a full row.
        start_step: Number of the first optimizer step.
        segment: Number of this process's part of the run.
        budget: The bytes it may write.
    """

    schedule: Schedule
    start_step: int
    segment: int
    budget: Budget


class Capture:
    """A running recording; made by `capture`. Also a context manager, which closes it.

    Nothing here raises into the training: what fails is counted and said once on stderr.

    Attributes:
        step: Number the next optimizer step gets: what a restart passes as ``start_step``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        store: GradientStore,
        sources: Mapping[Kind, Source],
        plan: Plan,
        reports: Reports,
    ) -> None:
        self.step = plan.start_step
        self._optimizer = optimizer
        self._groups = len(optimizer.param_groups)
        self._store = store
        self._sources = sources
        self._plan = plan
        self._reports = reports
        self._next = self._first_look_from(plan.start_step)
        self._cost = {kind: row_cost(source) for kind, source in sources.items()}
        self._pending: list[Slot] = []
        self._dropped = self._thinned = 0
        self._seconds = 0.0
        self._span: tuple[float, float] | None = None
        self._process = os.getpid()
        self._closed = False
        self._writer = Writer(store, plan.segment, self._release, self._lost)
        self._hook = optimizer.register_step_pre_hook(self._before_step)
        atexit.register(self.close)

    @property
    def stats(self) -> Stats:
        """What was recorded by now."""
        first, last = self._span or (0.0, 0.0)
        return Stats(
            full_rows=self._writer.rows["full"],
            tracked_rows=self._writer.rows["track"],
            nbytes=self._writer.nbytes,
            dropped=self._dropped + self._writer.dropped,
            thinned=self._thinned,
            nonfinite=self._writer.nonfinite,
            seconds=self._seconds,
            training_seconds=last - first,
        )

    def log(self, *, loss: Tensor | float) -> None:
        """Attach the loss to the step just done, without waiting for the device.

        Call it after ``optimizer.step()`` and before the next one; on steps that are not recorded
        it does nothing.
        """
        started = time.perf_counter()
        try:
            for slot in self._pending:
                self._sources[slot.kind].note(slot, LOSS, loss)
        except Exception as error:
            self._reports.once("loss", f"cannot log the loss: {_fact(error)}; training goes on")
        self._seconds += time.perf_counter() - started

    def close(self) -> None:
        """Store what was recorded, detach from the optimizer and say what there is."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        try:
            atexit.unregister(self.close)
            self._hook.remove()
            self._hand_over()
            self._writer.close()
            self._store.close()
        except Exception as error:
            self._reports.once("close", f"cannot finish {self._store.path}: {_fact(error)}")
        self._reports.news(f"{self._store.path}: {self.stats}")

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
        return f"<Capture {str(self._store.path)!r}, step {self.step}: {self.stats}>"

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        step = self.step
        self.step = step + 1
        if step < self._next:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._record(step)
            return None
        # the gradients of this step come into being when the optimizer calls the closure
        recording = self._recording_after(closure, step)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": recording}
        return (args[0], recording, *args[2:]), kwargs

    def _recording_after(self, closure: Callable[[], Any], step: int) -> Callable[[], Any]:
        recorded = False

        def recording() -> Any:
            nonlocal recorded
            value = closure()
            if not recorded:
                recorded = True
                self._record(step)
            return value

        return recording

    def _record(self, step: int) -> None:
        if self._closed or os.getpid() != self._process:
            return
        started = time.perf_counter()
        try:
            with no_grad():
                self._hand_over()
                self._stage(step)
        except Exception as error:
            self._reports.once("hook", f"cannot record step {step}: {_fact(error)}")
        self._next = step + 1 if self._pending else self._first_look_from(step + 1)
        ended = time.perf_counter()
        self._seconds += ended - started
        self._span = (self._span[0] if self._span else started, ended)

    def _first_look_from(self, step: int) -> int:
        """The first step at or after ``step`` at which there may be something to do."""
        return step if "track" in self._sources else self._plan.schedule.upcoming(step)

    def _hand_over(self) -> None:
        """Let the writer have the last step's rows: nothing can be logged to them any more."""
        if self._pending:
            self._writer.put(self._pending)
            self._pending = []

    def _stage(self, step: int) -> None:
        self._mention_surprises()
        if "full" in self._sources and self._plan.schedule(step):
            if self._plan.budget.keeps_full_row():
                self._stage_row("full", step)
            else:
                self._thinned += 1
                text = f"half of max_bytes is used at step {step}: full rows come half as often"
                self._reports.once("thinning", f"{text}, and again at each next half")
        if "track" in self._sources:
            self._stage_row("track", step)

    def _stage_row(self, kind: Kind, step: int) -> None:
        source = self._sources[kind]
        if self._cost[kind] > self._plan.budget.remaining:
            self._dropped += 1
            text = f"max_bytes is used up at step {step}: {kind} rows are dropped from here on"
            self._reports.once(f"budget {kind}", text)
            return
        try:
            slot = source.stage(step)
        except Exception as error:
            self._dropped += 1
            text = f"cannot copy the gradients of step {step}: {_fact(error)}"
            self._reports.once("staging", f"{text}; such rows are dropped, training goes on")
            return
        self._plan.budget.take(self._cost[kind])
        self._pending.append(slot)
        if source.sparse:
            text = f"the gradient of {source.sparse!r} is sparse and is stored dense"
            self._reports.once("sparse", f"{text}, zeros included")
        source.note(slot, LEARNING_RATE, self._optimizer.param_groups[0]["lr"])

    def _mention_surprises(self) -> None:
        if len(self._optimizer.param_groups) != self._groups:
            text = "the optimizer got new parameter groups, which are not recorded"
            self._reports.once("groups", f"{text}; attach after adding them")
        if getattr(self._optimizer, "grad_scale", None) is not None:
            text = "the optimizer is fused and unscales by itself: the gradients recorded are"
            rest = "multiplied by GradScaler's loss scale and skipped steps are among them"
            self._reports.once("fused", f"{text} {rest}; use fused=False to avoid it")

    def _release(self, slot: Slot) -> None:
        self._sources[slot.kind].pool.give_back(slot)

    def _lost(self, slots: Sequence[Slot], error: Exception) -> None:
        self._plan.budget.give_back(sum(self._cost[slot.kind] for slot in slots))
        text = f"cannot write step {slots[0].step}: {_fact(error)}"
        self._reports.once("writing", f"{text}; such rows are dropped, training goes on")


class Idle:
    """What a process gets that leaves the recording to another: the same verbs, doing nothing.

    Attributes:
        step: The ``start_step`` it was given.
        stats: Zeros.
    """

    def __init__(self, start_step: int) -> None:
        self.step = start_step
        self.stats = Stats()

    def log(self, *, loss: Tensor | float) -> None:
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


def row_cost(source: Source) -> int:
    """Bytes that one row of ``source`` takes on disk."""
    return source.nbytes + source.parameters + _COORDINATE_BYTES


def _fact(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
