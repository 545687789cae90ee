"""Any compressor as the communication hook of DistributedDataParallel."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gradstats.exchange.collectives import Group
from gradstats.exchange.comparing import (
    BROKEN,
    FAILED,
    SPOILT,
    Report,
    Situation,
    Written,
    are_broken,
    check_flags,
    compare,
    reports_of,
)
from gradstats.exchange.compressing import Compressing
from gradstats.exchange.exchanging import BucketExchange, share_flag
from gradstats.exchange.flights import Flight, Flights
from gradstats.exchange.hook_state import HookState
from gradstats.exchange.joining import FSDP, PYTHON_REDUCER
from gradstats.exchange.layouts import Layout, Layouts, layout_of
from gradstats.exchange.messaging import CollectiveError, Header, digest
from gradstats.kernels.recycling import Pool

T = TypeVar("T")


class CompressorState(HookState):
    """State of `compress_hook` on one worker; all workers make theirs at the same point.

    Making it is a collective: the workers compare their settings, and exchange a small matrix as
    a trial, so that what cannot work is refused before the training. Where
    `torch.distributed` is not initialized yet, this happens in the first backward pass.

    Args:
        process_group: The group of DistributedDataParallel; None is the default one.
        compressor: A spec (text, see `gradstats.compressor`) such as "ef(exact-threshold(0.01))",
            or an instance.
        by: How gradients are grouped before compression. "bucket": all compressed parameters of a
            DDP bucket form one vector. "parameter": each parameter is compressed by itself.
            Methods that need matrices, and specs written `per-parameter(…)`, always compress each
            parameter by itself.
        min_numel: Parameters of fewer elements are sent dense (uncompressed), see `DenseRule`.
        min_dims: Parameters of fewer dimensions are sent dense. Both rules are those of a replay
            per parameter; `per-parameter(…, min_numel=…, min_dims=…)` brings its own.
        start_step: Everything is sent dense in the steps before this one.
        named_parameters: The pairs of `model.named_parameters()`. A checkpoint stores the memory
            of a parameter (the residual of error feedback) under its name. Without names it is
            stored under a number, and is loaded only if the match is unambiguous.
        seed: Whole number from which random methods derive their random numbers.
        scaler: The GradScaler of the training. If given, memories hold unscaled gradients: they
            stay valid when the loss scale changes, and a step that the scaler skips does not
            update them.
        check_every: Number of steps after which the workers compare what they wrote; 0: never.

    Attributes:
        step: Number of backward passes with communication so far.
        traffic: Bytes that this worker sent, see `Traffic`.
        seconds: Time of the hook by phase, see `Seconds`.
        khat_over_k: Number of elements sent divided by the target number, k̂/k, in the last step,
            over the compressed parameters; NaN if the method has no ratio.
        nonfinite: Number of buckets that were averaged uncompressed because a worker had a NaN or
            inf in it, or the exchange produced one; memories are left as they were.

    Raises:
        ValueError: A setting is out of range, or differs between workers.
        RuntimeError: The backend cannot carry this compressor's collectives.
    """

    def _begin(self) -> None:
        super()._begin()
        self._bucket = 0
        self._compressing = Compressing(
            self.compressor, self._memories, self.seed, self.start_step
        )
        self._memory = Pool()
        self._layouts, self._flights, self._written = Layouts(), Flights(), Written()

    def reduce(self, bucket: dist.GradBucket) -> None:  # type: ignore[name-defined]
        """Replace a bucket's gradients by their exchange over all workers."""
        future, buffer = self.start(bucket), bucket.buffer()
        self._guarded(self._land)
        result: Tensor = future.value()
        if result is not buffer:
            buffer.copy_(result)

    def start(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Begin the exchange of a bucket; with the last bucket of a pass all are ended.

        A bucket that is only averaged is summed while the backward pass goes on, any other one is
        exchanged at once. Everything that may fail on one worker alone comes before the first
        collective, in which the workers report it to each other.

        Returns:
            A future of the bucket with the mean update.
        """
        group, buffer = self._group(), bucket.buffer()
        group.device = buffer.device
        group.traffic.would_send(buffer.numel() * buffer.element_size(), group.workers)
        if not self._bucket:
            self._settle()
        elif bucket.index() == 0:
            # in the first pass of a static graph all are 0, and none of several is the last
            torch.autograd.Variable._execution_engine.queue_callback(self._end_unmarked)
        future = self._guarded(self._started, bucket, group)
        self._bucket += 1
        if bucket.is_last():
            self._end_pass()
        return future

    def _guarded(self, call: Callable[..., T], *args: Any) -> T:
        """Call; after an error whoever goes on begins with another backward pass."""
        try:
            with self._memory.open():
                return call(*args)
        except BaseException as error:
            where, self._bucket = self._where(), 0
            self._flights.forget()
            if isinstance(error, CollectiveError):
                raise CollectiveError(f"{where}: {error}") from error
            raise

    def _started(self, bucket: Any, group: Group) -> Future[Tensor]:
        self._flights.read_numbers()
        buffer: Tensor = bucket.buffer()
        dtype = self._averages_in(buffer) if buffer.numel() else None
        future = _future(buffer)
        if dtype:
            self._average(bucket, group, dtype, future)
        else:
            future.set_result(self._reduced(bucket, group))
        if bucket.is_last():
            self._land()
        return future

    def _averages_in(self, buffer: Tensor) -> torch.dtype | None:
        """The dtype of the mean, if that is all that is asked for; else None."""
        if buffer.is_sparse:
            return None
        if self.step >= self.start_step:
            return self.compressor.averages_in(buffer.dtype)
        return None if self.compressor.steers or self._memories else buffer.dtype

    def _average(
        self, bucket: Any, group: Group, dtype: torch.dtype, future: Future[Tensor]
    ) -> None:
        """Begin the mean of a bucket.

        Where the workers have had the same bucket before, its numbers and its sum are under way
        together; else they compare it first, and wait for its sum: who knows whether another
        bucket follows. A worker that fails takes part, and raises its error.
        """
        layout, start = self._layouts.known(self._bucket, bucket), time.perf_counter()
        averaging = layout.averaging(dtype, group.workers) if layout else None
        finite, failure = None, None
        try:
            layout = layout or self._layout_of(bucket)
            averaging = layout.averaging(dtype, group.workers)
            finite = averaging.fill()
        except BaseException as error:  # whoever stops this worker
            failure = error
        group.seconds.encode += time.perf_counter() - start
        asked = f"a mean in {dtype}"
        report = self._report(layout, FAILED if failure else 0, asked)
        flight = Flight(group, self._situation(group, asked), layout, averaging, future)
        self._flights.add(flight)
        try:
            flight.begin(report, finite)
            if failure:
                flight.wait()
        finally:
            if failure:  # whatever becomes of the sum
                raise failure
        if layout and not layout.agreed:
            flight.land()

    def _land(self) -> None:
        for flight in self._flights.land():
            self.nonfinite += flight.broken
            if flight.layout:
                self._take_digest(flight.at.where, flight.layout, flight.layout.buffer)

    def _reduced(self, bucket: Any, group: Group) -> Tensor:
        """Exchange a bucket at once."""
        scale, failure = self._scaled[0] if self._scaled else 1.0, None
        exchange = BucketExchange(group, self._compressing, bucket.is_last(), scale)
        try:
            layout = self._layouts.known(self._bucket, bucket) or self._layout_of(bucket)
            exchange.open(layout, self.step)
        except BaseException as error:  # anyone's compressor, and whoever stops this worker
            failure = error
        if bucket.buffer().numel():
            return self._exchanged(bucket.buffer(), exchange, failure)
        if failure:
            raise failure
        empty: Tensor = bucket.buffer()
        return empty

    def _exchanged(
        self, buffer: Tensor, exchange: BucketExchange, failure: BaseException | None
    ) -> Tensor:
        """Perform the collectives of a bucket; in the first the workers compare their state."""
        try:
            reports = self._compared(exchange, failure)
        finally:
            if failure:  # whatever the others say to it
                raise failure
        if are_broken(reports):
            self.nonfinite += 1
            exchange.call_off()
            return exchange.average(buffer)
        steps, sound = exchange.finish([report.header for report in reports])
        if not sound:
            # on all workers, or they have drifted apart: who saw none learns it in its next round
            check_flags(share_flag(exchange.group, SPOILT), self._where())
            self.nonfinite += 1
            return exchange.average(buffer)
        layout = exchange.layout
        assert layout
        self._compressing.keep(layout, steps, self.step)
        self._take_digest(self._where(), layout, layout.result)
        return layout.result

    def _compared(self, exchange: BucketExchange, failure: BaseException | None) -> list[Report]:
        """Compare what must be alike on all workers; returns their reports.

        Raises:
            RuntimeError: Another worker failed, or something differs.
        """
        group, asked = exchange.group, exchange.asked
        flags = exchange.broken * BROKEN | (failure is not None) * FAILED
        report = self._report(exchange.layout, flags, asked, group.header(exchange.request))
        at = self._situation(group, asked)
        reports = reports_of(group.share(*report.numbers))
        if failure:
            return reports
        compare(reports, at)
        assert exchange.layout
        exchange.layout.agreed = True
        return reports

    def _layout_of(self, bucket: Any) -> Layout:
        together, scaled = self.by == "bucket", self.scaler is not None
        layout = layout_of(bucket, self._names, self.dense_rule, together=together, scaled=scaled)
        return self._layouts.add(self._bucket, layout)

    def _report(
        self, layout: Layout | None, flags: int, asked: str, header: Header | None = None
    ) -> Report:
        known = digest(f"{self.step} {layout.digest}") if layout else 0
        return Report(known, flags, self._written.digest, digest(asked), header or Header())

    def _situation(self, group: Group, asked: str) -> Situation:
        """Where this worker is; what was written is compared once."""
        written, self._written = self._written.text, Written()
        return Situation(group.rank, self.step, self._where(), written, asked)

    def _take_digest(self, where: str, layout: Layout, result: Tensor) -> None:
        if self.check_every and self.step % self.check_every == 0:
            first, last = layout.members[0].key, layout.members[-1].key
            self._written.add(f"{where}, of parameters {first} to {last},", result)

    def _end_unmarked(self) -> None:
        """End a pass in which no bucket was the last, unless it has failed."""
        if self._bucket:
            self._guarded(self._land)
            self._end_pass()

    def _end_pass(self) -> None:
        self._names.see_last()
        self._layouts.end(self._bucket)
        self._memory.trim()
        self.step += 1
        self.khat_over_k = self._compressing.khat_over_k()
        self._bucket = 0

    def _where(self) -> str:
        return f"bucket {self._bucket} of step {self.step}"


def _future(buffer: Tensor) -> Future[Tensor]:
    devices: list[int | str | torch.device] = [buffer.device] if buffer.is_cuda else []
    return Future(devices=devices)


def compress_hook(
    state: CompressorState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
    *sharded: Tensor,
) -> Future[Tensor]:
    """Exchange a bucket of gradients as the state's compressor does.

    For `DistributedDataParallel.register_comm_hook(state, compress_hook)`. Where a
    bucket is only averaged (`none`, `bf16`, `fp16`, the steps before `start_step`) its sum runs
    while the backward pass goes on. Otherwise it returns when the exchange is done: encoding
    competes with the backward pass for the same processor, and rounds that depend on each other
    must not cross.

    Args:
        state: The state of this worker.
        bucket: The bucket that DistributedDataParallel passes.
        sharded: An argument that only FSDP passes; it is refused.

    Returns:
        A future with the mean update, laid out as the bucket; all are complete when the hook of
        the last bucket returns.

    Raises:
        TypeError: FSDP called it, or the Python reducer of a compiled model.
        RuntimeError: The workers have different buckets, have drifted apart, one of them failed or
            cannot be reached, or the process group is another one.
        ValueError: A gradient is sparse, or the state does not know a parameter.
    """
    if isinstance(bucket, tuple):
        raise TypeError(PYTHON_REDUCER)
    if not isinstance(bucket, dist.GradBucket):  # type: ignore[attr-defined]
        raise TypeError(FSDP.format(name=type(bucket).__name__))
    return state.start(bucket)
