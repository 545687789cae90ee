"""Any compressor as the communication hook of DistributedDataParallel."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gradstats.compressors import AllReduce, Rng, Step
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.rounds import several
from gradstats.exchange import DisagreementError, Exchange, Rounds, fused
from gradstats.exchange.buckets import Member, Unit, are_finite, digest_of, members_of, units_of
from gradstats.exchange.collectives import Group
from gradstats.exchange.hook_state import HookState
from gradstats.exchange.joining import FSDP, PYTHON_REDUCER
from gradstats.exchange.messaging import CollectiveError, Header, MessageError, describe, digest

BROKEN, FAILED, SPOILT = 1, 2, 4  # flags that workers send each other
Reports = list[list[int]]  # of each worker: layout, flags, digest, request, then a header
NOTHING = (0, 0, *astuple(Header()))  # in the place of digest, request and header
DENSE = NoCompression()


@dataclass(eq=False)
class _Work:
    """A bucket in the hook.

    Attributes:
        layout: Digest of its parameters.
        members: Its parameters.
        units: Parameters that are exchanged together.
        scale: The loss scale.
        broken: Whether a NaN or inf is in it.
        last: Whether it is the last one of its backward pass.
        rounds: Its exchange; None where it is broken.
    """

    layout: int = 0
    members: Sequence[Member] = ()
    units: Sequence[Unit] = ()
    scale: float = 1.0
    broken: bool = False
    last: bool = False
    rounds: Rounds[list[list[Step]]] | None = None


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
        self._sent = self._asked = self._bucket = 0
        self._written, self._digest = "", 0  # what was written last, to be compared

    def reduce(self, bucket: dist.GradBucket) -> None:  # type: ignore[name-defined]
        """Replace a bucket's gradients by their exchange over all workers.

        Everything that may fail on one worker alone comes before the first collective, in which
        the workers report it to each other.
        """
        group, buffer = self._group(), bucket.buffer()
        group.device = buffer.device
        group.traffic.would_send(buffer.numel() * buffer.element_size(), group.workers)
        if not self._bucket:
            self._settle()
        try:
            self._reduce(bucket, group)
        except CollectiveError as error:
            where, self._bucket = self._where(), 0
            raise CollectiveError(f"{where}: {error}") from error
        except BaseException:
            self._bucket = 0  # whoever goes on begins with another backward pass
            raise
        self._bucket += 1
        if bucket.is_last():
            self._end_pass()

    def _reduce(self, bucket: Any, group: Group) -> None:
        buffer: Tensor = bucket.buffer()
        work, failure = _Work(), None
        try:
            self._open(bucket, group, work)
        except BaseException as error:  # anyone's compressor, and whoever stops this worker
            failure = error
        if buffer.numel():
            self._exchange(buffer, group, work, failure)
        elif failure:
            raise failure

    def _open(self, bucket: Any, group: Group, work: _Work) -> None:
        """Run the exchange up to its first collective, unless a gradient is broken."""
        buffer: Tensor = bucket.buffer()
        if buffer.is_sparse:
            fact = "got sparse ones, make the embedding with sparse=False"
            raise ValueError(f"gradients must be dense to be compressed, {fact}")
        members = members_of(buffer, bucket.parameters(), self._names, self.dense_rule)
        layout = [(member.key, *member.grad.shape, member.grad.dtype) for member in members]
        work.layout = digest(f"{self.step} {layout}")
        work.members, work.last = members, bucket.is_last()
        work.scale = self._scaled[0] if self._scaled else 1.0
        work.broken = not are_finite([buffer])
        if not work.broken:
            work.units = units_of(members, together=self.by == "bucket", scale=work.scale)
            work.rounds = Rounds(self._exchange_of(work, group), group)
            group.header(work.rounds.request)  # which encodes indices, and may fail too

    def _exchange_of(self, work: _Work, group: Group) -> Exchange[list[list[Step]]]:
        """The steps of the units that are compressed, which come first, and of the dense ones."""
        compressed, dense = [], []
        for unit in work.units:
            remembers = self._remembers(unit)
            state = None
            if remembers:
                state = self._memories.take(unit.keys, unit.grads, unit.whole)
            if self._is_dense(unit):
                method = self.compressor if remembers else DENSE
                dense.append(method.dense(unit.whole, state))
            else:
                name = ",".join(map(str, unit.keys))
                rng = Rng(self.seed, self.step, name, group.rank, group.workers)
                compressed.append((unit.whole, state, rng))
        parts = [several(dense)]
        if compressed:
            columns = zip(*compressed, strict=True)
            parts.insert(0, self.compressor.exchange_all(*columns))
        return fused(parts)

    def _remembers(self, unit: Unit) -> bool:
        return not self._is_dense(unit) or self.compressor.steers or unit.keys in self._memories

    def _is_dense(self, unit: Unit) -> bool:
        return unit.dense or self.step < self.start_step

    def _exchange(
        self, buffer: Tensor, group: Group, work: _Work, failure: BaseException | None
    ) -> None:
        """Perform the collectives of a bucket; in the first the workers compare their state."""
        try:
            reports = self._compare(group, work, failure)
        finally:
            if failure:  # whatever the others say to it
                raise failure
        if any(flags & BROKEN for _, flags, *_ in reports):
            if work.rounds:
                work.rounds.close()
            group.forget()
            self._average(buffer, group, work)
            return
        steps, updates, sound = self._finished(group, work, reports)
        if not sound:
            # on all workers, or they have drifted apart: who saw none learns it in its next round
            self._check_flags(group, group.share(0, SPOILT, *NOTHING))
            self._average(buffer, group, work)
            return
        for unit, update, step in zip(work.units, updates, steps, strict=True):
            unit.write(update)
            self._count(unit, step)
        for unit, step in zip(work.units, steps, strict=True):
            if self._remembers(unit):
                self._memories.put(unit.keys, step.state)
        if self.check_every and self.step % self.check_every == 0:
            first, last = work.members[0].key, work.members[-1].key
            self._written = f"{self._where()}, of parameters {first} to {last},"
            self._digest = digest_of(buffer)

    def _finished(
        self, group: Group, work: _Work, reports: Reports
    ) -> tuple[list[Step], list[Tensor], bool]:
        """Perform the collectives; returns also the updates, and whether these are finite.

        Raises:
            CollectiveError: a message is damaged, which is read in the same copy from the device.
                The others learn it in the round before the next bucket, if there is one.
        """
        assert work.rounds
        headers, ended = [Header(*header) for _, _, _, _, *header in reports], False
        try:
            steps = [step for part in work.rounds.finish(headers) for step in part]
            updates = [
                each.update if work.scale == 1 else each.update * work.scale for each in steps
            ]
            ended = True
            (sound,) = group.check(are_finite(updates))
        except BaseException as error:
            group.forget()
            if isinstance(error, MessageError) and ended and not work.last:
                group.share(0, FAILED, *NOTHING)
            raise
        return steps, updates, sound

    def _compare(
        self, group: Group, work: _Work, failure: BaseException | None
    ) -> list[list[int]]:
        """Compare what must be alike on all workers; returns their reports.

        Raises:
            RuntimeError: Another worker failed, or something differs.
        """
        request = work.rounds.request if work.rounds else None
        asked = describe(request) if request else "nothing"
        flags = work.broken * BROKEN | (failure is not None) * FAILED
        header = astuple(group.header(request))
        own = [work.layout, flags, self._digest, digest(asked), *header]
        reports = group.share(*own)
        written, self._written, self._digest = self._written, "", 0
        if failure:
            return reports
        self._check_flags(group, reports)
        others = [worker for worker, (layout, *_) in enumerate(reports) if layout != own[0]]
        if others:
            fact = f"at step {self.step} of worker {group.rank} it differs on {others}"
            raise DisagreementError(f"a bucket must be alike on all workers: {fact}")
        others = [worker for worker, (_, _, wrote, *_) in enumerate(reports) if wrote != own[2]]
        if others:
            fact = f"worker {group.rank} and workers {others} have drifted apart"
            raise DisagreementError(f"{written} must be the same on all workers: {fact}")
        broken = any(flags & BROKEN for _, flags, *_ in reports)
        others = [worker for worker, (_, _, _, what, *_) in enumerate(reports) if what != own[3]]
        if others and not broken:
            fact = f"worker {group.rank} asks for {asked} at {self._where()}, not so {others}"
            raise DisagreementError(f"workers must ask for the same collective: {fact}")
        return reports

    def _check_flags(self, group: Group, reports: Reports) -> None:
        failed = [worker for worker, (_, flags, *_) in enumerate(reports) if flags & FAILED]
        if failed:
            fact = "its own error says why, this one is that of a worker that waited for it"
            raise DisagreementError(f"worker {failed[0]} failed before {self._where()}: {fact}")
        spoilt = [worker for worker, (_, flags, *_) in enumerate(reports) if flags & SPOILT]
        if spoilt and len(spoilt) < group.workers:
            fact = f"a NaN or inf came out of the exchange on workers {spoilt} alone"
            raise DisagreementError(f"workers have drifted apart by {self._where()}: {fact}")

    def _average(self, buffer: Tensor, group: Group, work: _Work) -> None:
        """Average a bucket without compression; memories stay as they are."""
        self.nonfinite += 1
        if self.compressor.steers:
            together = self.by == "bucket"
            for unit in units_of(work.members, together=together, scale=work.scale):
                state = self._memories.take(unit.keys, unit.grads, unit.whole)
                unit.write(self.compressor.uncompressed(unit.whole, state) * work.scale)
        buffer.copy_(group.perform(AllReduce(buffer, "mean")))

    def _count(self, unit: Unit, step: Step) -> None:
        if self.compressor.ratio_asked is not None and not self._is_dense(unit):
            self._sent += step.sent.count
            self._asked += self.compressor.target_count(step.sent.numel)

    def _end_pass(self) -> None:
        self._names.see_last()
        self.step += 1
        self.khat_over_k = self._sent / self._asked if self._asked else math.nan
        self._sent = self._asked = self._bucket = 0

    def _where(self) -> str:
        return f"bucket {self._bucket} of step {self.step}"


def compress_hook(
    state: CompressorState,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
    *sharded: Tensor,
) -> Future[Tensor]:
    """Exchange a bucket of gradients as the state's compressor does.

    For `DistributedDataParallel.register_comm_hook(state, compress_hook)`. It returns when the
    exchange is done, so that no communication overlaps with the backward pass: encoding competes
    with it for the same processor, and rounds that depend on each other must not cross.

    Args:
        state: The state of this worker.
        bucket: The bucket that DistributedDataParallel passes.
        sharded: An argument that only FSDP passes; it is refused.

    Returns:
        A completed future with the bucket's buffer.

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
    state.reduce(bucket)
    buffer: Tensor = bucket.buffer()
    devices: list[int | str | torch.device] = [buffer.device] if buffer.is_cuda else []
    future: Future[Tensor] = Future(devices=devices)
    future.set_result(buffer)
    return future
