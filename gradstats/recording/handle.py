"""The handle of a running recording: hooks that stage rows for the writer."""

import atexit
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn, no_grad
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradstats.recording import surroundings
from gradstats.recording.budget import Budget
from gradstats.recording.reports import Reports
from gradstats.recording.schedules import Schedule
from gradstats.recording.staging import (
    CLIP_LIMIT,
    CLIP_NORM,
    LEARNING_RATE,
    LOSS,
    LOSS_SCALE,
    POINTS,
    SKIPPED,
    Slot,
    Source,
    row_cost,
)
from gradstats.recording.stats import Stats
from gradstats.recording.writing import Writer

#: Steps over which the median time of a step is taken.
_STEPS_TIMED = 33


@dataclass(frozen=True)
class Plan:
    """What a recording is to do.

    Attributes:
        schedule: Which steps get a full row.
        start_step: Number of the first optimizer step.
        budget: The bytes it may write.
        thin: Halve the rate of full rows whenever one finds no free slot.
        world_size: Processes that train together.
        by_comm_hook: A communication hook puts local gradients, instead of parameters' hooks.
    """

    schedule: Schedule
    start_step: int
    budget: Budget
    thin: bool = False
    world_size: int = 1
    by_comm_hook: bool = False


class Capture:
    """A running recording; made by `capture`. Also a context manager, which closes it.

    Nothing here raises into the training: what fails is counted and said once on stderr.

    A step is one call of the optimizer, also one that a GradScaler skips. With several optimizers
    (an optimizer in backward) it is over when one of them is called again.

    Attributes:
        step: Number the next optimizer step gets: what a restart passes as ``start_step``.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        tensors: Sequence[nn.Parameter],
        sources: Sequence[Source],
        writer: Writer,
        plan: Plan,
        reports: Reports,
    ) -> None:
        self.step = plan.start_step
        self._optimizers = list(optimizers)
        self._groups = [len(optimizer.param_groups) for optimizer in optimizers]
        self._tensors = list(tensors)
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        # made piece by piece during the step, or in one go before clipping, or at the step
        together = len(optimizers) == 1
        self._pieces = [s for s in sources if s.point == "local" or not together]
        self._before = [s for s in sources if s.point == "reduced" and together]
        self._at = [s for s in sources if s.point == "clipped" and together]
        self._writer = writer
        self._plan = plan
        self._reports = reports
        self._every_step = any(source.kind != "full" for source in sources)
        self._next = plan.start_step
        self._asked = (-1, False)  # the last step the schedule was asked about, and its answer
        self._open: list[Source] = []  # sources whose row is being made piece by piece
        self._pending: list[Slot] = []  # rows of the last step, to which a loss can be logged
        self._taken = False  # the rows before clipping of this step are staged
        self._clipped: tuple[Tensor, float] | None = None
        self._unscaled_early = False
        self._inside: int | None = None  # the step whose closure runs
        self._scaler: Any = None
        self._stepped: set[int] = set()
        self._backwards = 0
        self._times: deque[float] = deque(maxlen=_STEPS_TIMED)
        self._dropped = self._thinned = 0
        self._seconds = 0.0
        self._span: tuple[float, float] | None = None
        self._process = os.getpid()
        self._closed = False
        self._listens = any(source.point == "local" for source in self._pieces)
        self._listens = self._listens and not plan.by_comm_hook
        self._listening: list[RemovableHandle] = []
        self._hooks = list(self._attach())
        surroundings.listen(self)
        atexit.register(self.close)
        self._look_ahead(self.step)

    @property
    def stats(self) -> Stats:
        """What was recorded by now."""
        first, last = self._span or (0.0, 0.0)
        return Stats(
            full_rows=self._writer.rows["full"],
            tracked_rows=self._writer.rows["track"],
            summary_rows=self._writer.rows["summary"],
            nbytes=self._writer.nbytes,
            dropped=self._dropped + self._writer.dropped,
            thinned=self._thinned,
            nonfinite=self._writer.nonfinite,
            unsent=self._writer.unsent,
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
            slots = self._pending
            if len(self._optimizers) > 1:  # the step just done is over when the next one begins
                slots = [source.slot for source in self._open if source.slot is not None]
            for slot in slots:
                slot.note(LOSS, loss)
        except Exception as error:
            self._reports.once("loss", f"cannot log the loss: {_fact(error)}; training goes on")
        self._seconds += time.perf_counter() - started

    def close(self) -> None:
        """Store what was recorded, detach from the optimizer and say what there is."""
        if self._closed or os.getpid() != self._process:
            return
        if self._stepped and len(self._optimizers) > 1:
            self._guarded(self._finish_round)
        self._closed = True
        try:
            atexit.unregister(self.close)
            surroundings.forget(self)
            self._listen(False)
            for hook in self._hooks:
                hook.remove()
            self._hand_over()
            for source in self._open:
                source.abandon()
            self._writer.close()
        except Exception as error:
            self._reports.once("close", f"cannot finish {self._writer.where}: {_fact(error)}")
        self._mention_missing()
        self._reports.news(f"{self._writer.where}: {self.stats}")

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

    # --- hooks: each says what it saw ---

    def _attach(self) -> Iterator[Any]:
        one = len(self._optimizers) == 1
        for number, optimizer in enumerate(self._optimizers):
            if one:
                yield optimizer.register_step_pre_hook(self._before_step)
            else:
                places = [
                    self._places[id(tensor)]
                    for group in optimizer.param_groups
                    for tensor in group["params"]
                    if id(tensor) in self._places
                ]
                yield optimizer.register_step_pre_hook(self._before_part(number, places))
        if one and not self._listens:
            trained = [tensor for tensor in self._tensors if tensor.requires_grad]
            yield _hook_first((trained or self._tensors)[-1], self._count_backward)

    def _listen(self, wanted: bool) -> None:
        """Hook the parameters for a step whose local gradients are due, and only for that."""
        if wanted and self._listens and not self._listening:
            self._listening = [
                _hook_first(tensor, self._after_accumulation(place))
                for place, tensor in enumerate(self._tensors)
            ]
        elif not wanted:
            for hook in self._listening:
                hook.remove()
            self._listening = []

    def _count_backward(self, _: Tensor) -> None:
        self._backwards += 1

    def _after_accumulation(self, place: int) -> Callable[[Tensor], None]:
        def after(_: Tensor) -> None:
            if self._open:
                self.put(place)

        return after

    def put(self, place: int, grad: Tensor | None = None) -> None:
        """Copy the gradient of a parameter, as it is now, into the rows that are being made."""
        if os.getpid() != self._process:
            return
        started = time.perf_counter()
        try:
            with no_grad():
                for source in self._open:
                    source.put(place, grad)
        except Exception as error:
            self._give_up(self.step, error)
        self._seconds += time.perf_counter() - started

    def put_local(self, parameter: Tensor, grad: Tensor) -> None:
        """Copy a local gradient that a communication hook was given."""
        if self._open and id(parameter) in self._places and not self._closed:
            self.put(self._places[id(parameter)], grad)

    def before_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Stage the rows that show gradients before clipping."""
        if self._places.keys().isdisjoint(map(id, parameters)) or self._clipped is not None:
            return
        self._clipped = norm, limit
        step = self.step if self._inside is None else self._inside
        if step >= self._next and self._before:
            self._guarded(lambda: self._take_before(step))

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Call ``step``; when it leaves the optimizer out, record what it was not given."""
        if optimizer not in self._optimizers:
            return step()
        self._scaler = scaler
        self._unscaled_early = _stage_of(scaler, optimizer) == "UNSCALED"
        before = self.step
        try:
            result = step()
            if self.step == before and len(self._optimizers) == 1:
                self.step += 1
                self._complete(before, skipped=True)
        finally:
            self._scaler = None
        return result

    def _before_step(
        self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        step = self.step
        self.step = step + 1
        self._times.append(time.perf_counter())
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._complete(step)
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
            if recorded:
                return closure()
            self._inside = step
            try:
                value = closure()
            finally:
                self._inside, recorded = None, True
            self._complete(step)
            return value

        return recording

    def _complete(self, step: int, *, skipped: bool = False) -> None:
        if step >= self._next:
            self._guarded(lambda: self._record(step, skipped=skipped))
        else:
            self._clipped, self._backwards = None, 0

    def _before_part(self, number: int, places: Sequence[int]) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if number in self._stepped:
                self._guarded(self._finish_round)
            self._stepped.add(number)
            if self._open:
                for place in places:
                    self.put(place)

        return before

    # --- a step ---

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._closed or os.getpid() != self._process:
            return
        started = time.perf_counter()
        try:
            with no_grad():
                work()
        except Exception as error:
            self._reports.once("hook", f"cannot record step {self.step}: {_fact(error)}")
        ended = time.perf_counter()
        self._seconds += ended - started
        self._span = (self._span[0] if self._span else started, ended)

    def _record(self, step: int, *, skipped: bool = False) -> None:
        """Complete the rows of a step, whose gradients the optimizer is about to get."""
        early = self._taken
        try:
            self._mention_surprises()
            self._take_before(step)
            for source in self._due(step, self._at):
                self._stage(source, step)
            self._end_pieces()
            for slot in self._pending:
                self._describe(slot, early=early, skipped=skipped)
        finally:
            self._taken, self._clipped, self._backwards = False, None, 0
            self._look_ahead(step + 1)

    def _take_before(self, step: int) -> None:
        """Stage the rows of the point before clipping, once a step."""
        if self._taken:
            return
        self._hand_over()
        self._taken = True
        for source in self._due(step, self._before):
            self._stage(source, step)

    def _finish_round(self) -> None:
        """All optimizers had their turn."""
        step = self.step
        self.step += 1
        self._times.append(time.perf_counter())
        self._stepped = set()
        try:
            self._mention_surprises()
            self._hand_over()
            self._end_pieces()
            for slot in self._pending:
                self._describe(slot, early=False, skipped=False)
        finally:
            self._look_ahead(step + 1)

    def _look_ahead(self, step: int) -> None:
        """Set the next step at which there is something to do; begin its rows of pieces."""
        upcoming = step if self._every_step else self._plan.schedule.upcoming(step)
        # rows of the step before wait for their loss until the next step
        self._next = step if self._pending else upcoming
        self._open = []
        if upcoming == step and self._pieces:
            for source in self._due(step, self._pieces):
                if self._affordable(source, step) and self._begun(source, step):
                    self._open.append(source)
        self._listen(bool(self._open))

    def _begun(self, source: Source, step: int) -> bool:
        if source.begin(step):
            return True
        self._no_slot(source, step)
        return False

    def _due(self, step: int, sources: Sequence[Source]) -> list[Source]:
        """Those of the sources whose row is due; the schedule is asked once a step."""
        due = [source for source in sources if source.kind != "full"]
        whole = [source for source in sources if source.kind == "full"]
        if whole and self._full_row_is_due(step):
            due = [*whole, *due]
        return due

    def _full_row_is_due(self, step: int) -> bool:
        if self._asked[0] != step:
            self._asked = (step, self._plan.schedule(step) and self._kept(step))
        return self._asked[1]

    def _kept(self, step: int) -> bool:
        if self._plan.budget.keeps_full_row():
            return True
        self._thinned += 1
        text = f"half of max_bytes is used at step {step}: full rows come half as often"
        self._reports.once("thinning", f"{text}, and again at each next half")
        return False

    def _affordable(self, source: Source, step: int) -> bool:
        if row_cost(source) <= self._plan.budget.remaining:
            return True
        self._dropped += 1
        text = f"max_bytes is used up at step {step}: {source.kind} rows are dropped from here on"
        self._reports.once(f"budget {source.kind}", text)
        return False

    def _stage(self, source: Source, step: int) -> None:
        if not self._affordable(source, step):
            return
        try:
            slot = source.stage(step)
        except Exception as error:
            self._give_up(step, error)
            return
        if slot is None:
            self._no_slot(source, step)
            return
        self._add(slot)

    def _end_pieces(self) -> None:
        for source in self._open:
            if not any(source.fires):
                source.abandon()  # no backward since the step before, or attached after it
                continue
            try:
                counts = Counter(fired for fired in source.fires if fired)
                if source.point == "local" and counts:
                    # a weight used twice under reentrant checkpointing fires twice: most do not
                    self._backwards = counts.most_common(1)[0][0]
                self._add(source.end())
            except Exception as error:
                source.abandon()
                self._give_up(self.step - 1, error)
        self._open = []

    def _add(self, slot: Slot) -> None:
        self._plan.budget.take(slot.cost)
        self._pending.append(slot)
        if slot.source.densified:
            text = f"the gradient of {slot.source.densified!r} is sparse and is stored dense"
            self._reports.once("sparse", f"{text}, zeros included: its module did not say sparse")

    def _no_slot(self, source: Source, step: int) -> None:
        self._dropped += 1
        text = f"the writer is behind at step {step}: such {source.kind} rows are dropped"
        self._reports.once(f"full {source.kind}", text)
        if self._plan.thin and source.kind == "full":
            self._plan.budget.thin()

    def _give_up(self, step: int, error: Exception) -> None:
        self._dropped += 1
        text = f"cannot copy the gradients of step {step}: {_fact(error)}"
        self._reports.once("staging", f"{text}; such rows are dropped, training goes on")
        for source in self._open:
            source.abandon()
        self._open = []

    def _describe(self, slot: Slot, *, early: bool, skipped: bool) -> None:
        """Note how the gradients of a row came to be."""
        optimizer, point = self._optimizers[0], slot.source.point
        slot.note(LEARNING_RATE, optimizer.param_groups[0]["lr"])
        scale, unscaled = self._scale(optimizer, point, early=early)
        slot.note(LOSS_SCALE, scale)
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer is told and skips
        slot.note(SKIPPED, float(skipped) if found is None else found)
        if self._clipped is not None:
            slot.note(CLIP_NORM, self._clipped[0])
            slot.note(CLIP_LIMIT, self._clipped[1])
        times = self._times
        seconds = [later - sooner for sooner, later in zip(times, list(times)[1:], strict=False)]
        slot.facts = {
            "micro_step": max(0, self._backwards - 1),
            "unscaled": int(unscaled),
            "world_size": self._plan.world_size,
            "step_seconds": median(seconds) if seconds else None,
        }

    def _scale(
        self, optimizer: Optimizer, point: str, *, early: bool
    ) -> tuple[Tensor | float, bool]:
        """The loss scale, and whether the gradients at a point are divided by it."""
        if self._scaler is None:
            return 1.0, True
        scale = getattr(self._scaler, "_scale", None)
        fused = getattr(optimizer, "found_inf", None) is not None
        at_step = self._unscaled_early or not fused
        unscaled = self._unscaled_early if early and point == "reduced" else at_step
        return math.nan if scale is None else scale, unscaled and point != "local"

    def _hand_over(self) -> None:
        """Let the writer have the last step's rows: nothing can be logged to them any more."""
        if self._pending:
            order = POINTS.index
            self._writer.put(sorted(self._pending, key=lambda slot: order(slot.source.point)))
            self._pending = []

    # --- what is said ---

    def _mention_surprises(self) -> None:
        now = [len(optimizer.param_groups) for optimizer in self._optimizers]
        if now != self._groups:
            text = "the optimizer got new parameter groups, which are not recorded"
            self._reports.once("groups", f"{text}; attach after adding them")
        if getattr(self._optimizers[0], "grad_scale", None) is not None:
            text = "the optimizer is fused and unscales by itself: rows of reduced gradients are"
            rest = "multiplied by GradScaler's loss scale (coordinate loss_scale, unscaled = 0)"
            self._reports.once("fused", f"{text} {rest}; use fused=False to avoid it")

    def _mention_missing(self) -> None:
        never = self._writer.never_present
        if never:
            shown = ", ".join(never[:4]) + (", …" if len(never) > 4 else "")
            text = f"{len(never)} parameters had no gradient in any row: {shown}"
            if len(never) == len(self._tensors):
                text = f"{text}; an optimizer in backward? pass all optimizers as a list"
            self._reports.once("missing", text)


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


def _hook_first(tensor: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Register a post-accumulate hook that runs before the others.

    A frozen parameter takes none, but keeps the one it has: it may be unfrozen later.
    """
    frozen = not tensor.requires_grad
    if frozen:
        tensor.requires_grad_(True)
    try:
        handle: RemovableHandle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    finally:
        if frozen:
            tensor.requires_grad_(False)
    # an optimizer in backward frees the gradient in a hook of its own; torch calls them in the
    # order in which they entered the dictionary
    hooks: Any = tensor._post_accumulate_grad_hooks
    others = [(key, value) for key, value in hooks.items() if key != handle.id]
    for key, value in others:
        del hooks[key]
        hooks[key] = value
    return handle


def _stage_of(scaler: Any, optimizer: Optimizer) -> str:
    """READY, UNSCALED or STEPPED; READY where a scaler of another make does not say."""
    states: Mapping[int, Mapping[str, Any]] = getattr(scaler, "_per_optimizer_states", {})
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", "READY")


def _fact(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
