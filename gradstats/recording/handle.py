"""The handle of a running recording: it hooks into the training and says what it saw."""

import atexit
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn, no_grad
from torch.optim import Optimizer

from gradstats.recording import surroundings
from gradstats.recording.circumstances import Circumstances, stage_of
from gradstats.recording.hooking import LocalHooks, closure_of, hook_first, with_closure
from gradstats.recording.reports import Reports
from gradstats.recording.rows import Plan, Rows
from gradstats.recording.slots import LOSS
from gradstats.recording.staging import Source
from gradstats.recording.stats import Stats
from gradstats.recording.writing import Writer


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
        self._together = len(optimizers) == 1
        self._tensors = list(tensors)
        self._places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self._writer = writer
        self._reports = reports
        self._seen = Circumstances(plan.world_size)
        self._rows = Rows(sources, writer, plan, reports, self._seen, together=self._together)
        self._inside: int | None = None  # the step whose closure runs
        self._stepped: set[int] = set()
        self._seconds = 0.0
        self._span: tuple[float, float] | None = None
        self._process = os.getpid()
        self._closed = False
        local = any(source.point == "local" for source in sources) and not plan.by_comm_hook
        self._local_hooks = LocalHooks(self._tensors if local else [], self._after_accumulation)
        self._hooks = list(self._attach(counting=not local))
        surroundings.listen(self)
        atexit.register(self.close)
        self._look_ahead()

    @property
    def stats(self) -> Stats:
        """What was recorded by now."""
        first, last = self._span or (0.0, 0.0)
        return Stats(
            full_rows=self._writer.rows["full"],
            tracked_rows=self._writer.rows["track"],
            summary_rows=self._writer.rows["summary"],
            nbytes=self._writer.nbytes,
            dropped=self._rows.dropped + self._writer.dropped,
            thinned=self._rows.thinned,
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
            slots = self._rows.pending
            if not self._together:  # the step just done is over when the next one begins
                slots = [source.slot for source in self._rows.open if source.slot is not None]
            for slot in slots:
                slot.note(LOSS, loss)
        except Exception as error:
            self._reports.once("loss", f"cannot log the loss: {_fact(error)}; training goes on")
        self._seconds += time.perf_counter() - started

    def close(self) -> None:
        """Store what was recorded, detach from the optimizer and say what there is."""
        if self._closed or os.getpid() != self._process:
            return
        if self._stepped and not self._together:
            self._finish_round()
        self._closed = True
        try:
            atexit.unregister(self.close)
            surroundings.forget(self)
            self._local_hooks.want(False)
            for hook in self._hooks:
                hook.remove()
            self._rows.hand_over()
            self._rows.abandon()
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

    # --- what hooks see ---

    def _attach(self, *, counting: bool) -> Iterator[Any]:
        for number, optimizer in enumerate(self._optimizers):
            if self._together:
                yield optimizer.register_step_pre_hook(self._before_step)
            else:
                yield optimizer.register_step_pre_hook(self._before_part(number))
        if counting and self._together:
            trained = [tensor for tensor in self._tensors if tensor.requires_grad]
            yield hook_first((trained or self._tensors)[-1], self._seen.count_backward)

    def _after_accumulation(self, place: int) -> None:
        if self._rows.open:
            self._put(place)

    def _put(self, place: int, grad: Tensor | None = None) -> None:
        """Copy the gradient of a parameter, as it is now, into the rows that are being made."""
        if os.getpid() != self._process:
            return
        started = time.perf_counter()
        try:
            with no_grad():
                self._rows.put(place, grad)
        except Exception as error:
            self._rows.give_up(self.step, error)
        self._seconds += time.perf_counter() - started

    def put_local(self, parameter: Tensor, grad: Tensor) -> None:
        """Copy a local gradient that a communication hook was given."""
        if self._rows.open and id(parameter) in self._places and not self._closed:
            self._put(self._places[id(parameter)], grad)

    def before_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Stage the rows that show gradients before clipping."""
        if self._seen.clipped is not None or self._places.keys().isdisjoint(map(id, parameters)):
            return
        self._seen.clipped = norm, limit
        step = self.step if self._inside is None else self._inside
        if step >= self._rows.next and self._rows.before:
            self._guarded(lambda: self._rows.take_before(step))

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Call ``step``; when it leaves the optimizer out, record what it was not given."""
        if optimizer not in self._optimizers:
            return step()
        self._seen.scaler = scaler
        self._seen.unscaled_early = stage_of(scaler, optimizer) == "UNSCALED"
        before = self.step
        try:
            result = step()
            if self.step == before and self._together:
                self.step += 1
                self._complete(before, skipped=True)
        finally:
            self._seen.scaler = None
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

    def _before_part(self, number: int) -> Callable[..., None]:
        groups = self._optimizers[number].param_groups
        held = [id(tensor) for group in groups for tensor in group["params"]]
        places = [self._places[key] for key in held if key in self._places]

        def before(*_: Any) -> None:
            if number in self._stepped:
                self._finish_round()
            self._stepped.add(number)
            if self._rows.open:
                for place in places:
                    self._put(place)

        return before

    # --- a step ---

    def _complete(self, step: int, *, skipped: bool = False) -> None:
        if step >= self._rows.next:
            self._guarded(lambda: self._record(step, skipped=skipped))
        else:
            self._seen.forget()

    def _finish_round(self) -> None:
        """All optimizers had their turn."""
        step = self.step
        self.step += 1
        self._seen.tick()
        self._stepped = set()
        self._guarded(lambda: self._record(step))

    def _record(self, step: int, *, skipped: bool = False) -> None:
        try:
            self._mention_surprises()
            self._rows.complete(step, self._optimizers[0], skipped=skipped)
        finally:
            self._seen.forget()
            self._look_ahead()

    def _look_ahead(self) -> None:
        self._rows.look_ahead(self.step)
        self._local_hooks.want(bool(self._rows.open))

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


def _fact(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
