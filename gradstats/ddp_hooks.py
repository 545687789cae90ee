"""Any compressor as the communication hook of DistributedDataParallel."""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gradstats.buckets import Member, Unit, all_finite, digest_of, members_of, units_of
from gradstats.collectives import CollectiveError, Group, Seconds, Traffic, describe, digest
from gradstats.compressors import MIN_NUMEL, AllReduce, Compressor, Rng, Step
from gradstats.compressors import compressor as from_spec
from gradstats.compressors.none import NoCompression
from gradstats.exchange import DisagreementError, Exchange, Rounds, drive, fused
from gradstats.memories import Memories, resharded
from gradstats.naming import IncompatibleKeys, Names

By = Literal["bucket", "parameter"]
FSDP = (
    "compress_hook must be given a bucket of DistributedDataParallel, got {found}: FSDP reduces "
    "gradients to shards, where no worker has the whole that a compressor works on. Train with "
    "DistributedDataParallel; what can be compressed under FSDP are the shards, between the "
    "replicas of a hybrid-sharded model, by a hook of your own around gradstats.exchange.drive"
)
PYTHON_REDUCER = (
    "compress_hook must be given a bucket of DistributedDataParallel, got a gradient and its "
    "parameter, as the reducer in Python of a compiled model gives them: set "
    "torch._dynamo.config.optimize_ddp = True (or False) before the model is wrapped"
)
TRIAL = (64, 48)  # of a matrix that is exchanged before the training
BROKEN, FAILED = 1, 2  # flags that workers tell each other
DENSE = NoCompression()


@dataclass(eq=False)
class _Work:
    """A bucket on its way through the hook.

    Attributes:
        layout: digest of what lies in it.
        members: its parameters.
        units: what is exchanged together, and for each whether it has a memory.
        scale: the loss scale.
        broken: a NaN or inf is in it.
        rounds: its exchange; None where it is broken.
    """

    layout: int = 0
    members: Sequence[Member] = ()
    units: Sequence[Unit] = ()
    remembered: list[bool] = field(default_factory=list)
    scale: float = 1.0
    broken: bool = False
    rounds: Rounds[list[Step]] | None = None


class CompressorState:
    """What `compress_hook` keeps on one worker; every worker makes one, at the same place.

    Making it is a collective: the workers compare their settings, and exchange a small matrix by
    way of trial, so that what cannot work is refused before the training. Where
    `torch.distributed` is not initialized yet, this happens in the first backward pass.

    Args:
        process_group: as DistributedDataParallel has it; None is the default one.
        compressor: a spec such as "ef(exact-threshold(0.01))", or an instance.
        by: "bucket" compresses what is compressed of a bucket as one vector, "parameter" each
            parameter for itself, which methods that need matrices do in any case.
        min_numel: parameters of fewer elements, and those of one dimension, are sent as they are.
        start_step: everything is, in the steps before.
        named_parameters: `model.named_parameters()`, by which memories find their parameters in
            the next process. Without it they go by number, and a checkpoint is loaded only where
            there is no doubt.
        seed: of random methods; global generators are not touched.
        scaler: the GradScaler of the training: memories then hold gradients without its scale,
            outlast its changes, and stay as they were in a step that it skips.
        check_every: steps after which the workers compare what they wrote; 0: never.

    Attributes:
        step: backward passes with communication so far.
        traffic: what this worker moved, see `Traffic`.
        seconds: where the time of the hook went.
        khat_over_k: elements sent over elements asked for in the last step; NaN without a ratio.
        nonfinite: buckets that were averaged as they are because a worker had a NaN or inf there,
            or because one came out of the exchange; memories are left as they were.

    Raises:
        ValueError: settings out of range, or not the same on all workers.
        RuntimeError: the backend cannot carry this compressor's collectives.
    """

    def __init__(
        self,
        process_group: Any = None,
        compressor: str | Compressor = "ef(exact-threshold(0.01))",
        by: By = "bucket",
        min_numel: int = MIN_NUMEL,
        start_step: int = 0,
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        seed: int = 0,
        scaler: torch.amp.GradScaler | None = None,
        check_every: int = 100,
    ) -> None:
        self.compressor = _checked(compressor)
        if by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
        numbers = {"min_numel": min_numel, "start_step": start_step, "check_every": check_every}
        for name, number in numbers.items():
            least = 1 if name == "min_numel" else 0
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {number!r}")
        self.by: By = "parameter" if "matrix" in self.compressor.contract.needs else by
        self.min_numel, self.start_step, self.check_every = min_numel, start_step, check_every
        self.seed, self.scaler = seed, scaler
        self._process_group = process_group
        self._names = Names(named_parameters)
        self._begin()
        if dist.is_available() and dist.is_initialized():
            self._join()

    def _begin(self) -> None:
        """The first step, before any worker is met."""
        self.traffic, self.seconds = Traffic(), Seconds()
        self.step = self.nonfinite = 0
        self.khat_over_k = math.nan
        self._sent = self._asked = self._bucket = 0
        self._written, self._digest = "", 0  # what was written last, to be compared
        self._scale = 0.0  # of the last backward pass
        self._lost: tuple[str, ...] = ()  # what pickling left behind
        self._memories = Memories(self.compressor, reversible=self.scaler is not None)
        self._joined: Group | None = None
        self._met: weakref.ref[Any] | None = None

    # --- the workers ---

    def _join(self) -> Group:
        """Meet the other workers; refuses what cannot work."""
        group = Group(self._process_group)
        group.device = _device(self._process_group)
        self._met = weakref.ref(self._process_group or dist.group.WORLD)
        self._joined = group
        self._agree_on_settings(group)
        self._try(group)
        group.traffic, group.seconds = self.traffic, self.seconds
        return group

    def _group(self) -> Group:
        """The workers, after a look whether they are still those that were met.

        Raises:
            RuntimeError: they are not.
        """
        if self._lost:
            rule = "a state that was pickled must be given what was left behind"
            raise RuntimeError(f"{rule}: rebind() its {', '.join(self._lost)}")
        # trainers that set up torch.distributed themselves are handed a state before they do
        group = self._joined or self._join()
        now = self._process_group or (dist.group.WORLD if dist.is_initialized() else None)
        met = self._met() if self._met else None
        if now is None or now is not met or dist.get_rank(self._process_group) != group.rank:
            rule = f"the process group must be the one in which this was worker {group.rank}"
            remedy = "make a new CompressorState there, and load the worker's state_dict() into it"
            raise RuntimeError(f"{rule} of {group.workers}, got another one: {remedy}")
        return group

    def _agree_on_settings(self, group: Group) -> None:
        settings = {**self.settings, "check_every": self.check_every}
        own = digest(f"{settings} {self._names.order}")
        others = [worker for worker, (told,) in enumerate(group.tell(own)) if told != own]
        if others:
            names = f" and {len(self._names.order)} names" if self._names.named else ""
            fact = f"got {settings}{names} on worker {group.rank}, others on {others}"
            raise ValueError(f"settings must be the same on all workers, {fact}")

    def _try(self, group: Group) -> None:
        """Exchange a matrix and a vector; what a backend lacks it says now."""
        numbers = torch.arange(1.0, math.prod(TRIAL) + 1, device=group.device)
        rng = Rng(self.seed, 0, "trial", group.rank, group.workers)
        exchanges = [
            self.compressor.exchange(grad, self.compressor.init(grad), rng)
            for grad in (numbers.view(TRIAL), numbers)
        ]
        try:
            drive(fused(exchanges), group)
        except CollectiveError as error:
            backend = dist.get_backend(group.group)
            raise RuntimeError(
                f"cannot exchange {self.compressor} over the backend {backend}: {error}"
            ) from error

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same on all workers."""
        return {
            "compressor": str(self.compressor),
            "by": self.by,
            "min_numel": self.min_numel,
            "start_step": self.start_step,
            "seed": self.seed,
            "workers": self._place()[1],
        }

    def _place(self) -> tuple[int | None, int | None]:
        """Rank and number of workers; None while there is no process group."""
        if self._joined:
            return self._joined.rank, self._joined.workers
        if not (dist.is_available() and dist.is_initialized()):
            return None, None
        return dist.get_rank(self._process_group), dist.get_world_size(self._process_group)

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this worker holds; each worker has memories of its own.

        Dicts, lists, tuples, numbers and tensors on the CPU. Parameters go by their names, or by
        their numbers from the last of the model to the first, so that the buckets may differ where
        it is loaded.
        """
        if self._was_skipped():
            self._settle()
        return {
            "settings": self.settings,
            "worker": self._place()[0],
            "step": self.step,
            "parameters": [
                [key, list(shape), dtype] for key, shape, dtype in self._names.described()
            ],
            "memories": self._memories.saved(),
        }

    def load_state_dict(
        self,
        saved: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        strict: bool = True,
        *,
        reshard: bool = False,
    ) -> IncompatibleKeys:
        """Go on from a checkpoint of this worker; before the first backward pass.

        Args:
            saved: what `state_dict` gave on this worker; with `reshard` a list of what it gave on
                all workers, in order.
            strict: refuse a checkpoint of other parameters; without it the part that fits is
                loaded, which takes names.
            reshard: the number of workers has changed. What they had not sent is added up, so that
                nothing is lost; refused where a memory does not allow it.

        Returns:
            Names of parameters that the checkpoint lacks, and of those that it has too many.

        Raises:
            ValueError: of other settings, of another worker, of other parameters, or too late.
        """
        if self._names.seen:
            rule = "load_state_dict must be called before the first backward pass"
            raise ValueError(f"{rule}, got it at step {self.step}")
        parts = [saved] if isinstance(saved, Mapping) else list(saved)
        self._check_checkpoint(parts, reshard)
        remembered = {key for part in parts for key in part["memories"]}
        keys, unfit = self._names.match(parts[0]["parameters"], remembered, strict=strict)
        self.step = parts[0]["step"]
        memories = [
            {keys[key]: memory for key, memory in part["memories"].items() if key in keys}
            for part in parts
        ]
        worker, workers = self._place()
        if reshard:
            memories = [resharded(self.compressor, memories, worker or 0, workers or 1)]
        self._memories.load(memories[0])
        return unfit

    def _check_checkpoint(self, parts: Sequence[Mapping[str, Any]], reshard: bool) -> None:
        """Raise ValueError unless these are checkpoints of this worker, or of all workers."""
        own: dict[str, Any] = {**self.settings, "worker": self._place()[0]}
        for place, part in enumerate(parts):
            if not {"settings", "worker", "step", "parameters", "memories"} <= set(part):
                raise ValueError(f"a checkpoint must be what state_dict() gives, got {list(part)}")
            theirs = {**part["settings"], "worker": part["worker"]}
            if reshard:
                own |= {"workers": len(parts), "worker": place}
            for name, value in own.items():
                if theirs.get(name) != value:
                    got = f"got one of {theirs.get(name)!r}"
                    remedy = ""
                    if name == "workers" and not reshard:
                        remedy = ": load_state_dict([those of all workers], reshard=True)"
                    raise ValueError(f"a checkpoint must be of {name} {value!r}, {got}{remedy}")
        if len(parts) != 1 and not reshard:
            rule = "load_state_dict must be given the checkpoint of this worker"
            raise ValueError(f"{rule}, got {len(parts)}: of all with reshard=True")

    def rebind(
        self,
        *,
        process_group: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        """Give a state that was pickled what does not travel.

        Args:
            process_group: where it had one of its own.
            scaler: where it had one.
            named_parameters: where it had names.
        """
        given = {
            "process_group": process_group,
            "scaler": scaler,
            "named_parameters": named_parameters,
        }
        self._lost = tuple(name for name in self._lost if given[name] is None)
        self._process_group = process_group or self._process_group
        self.scaler = scaler or self.scaler
        self._memories.reversible = self.scaler is not None
        if named_parameters is not None:
            memories, parameters = self._memories.saved(), self._pickled
            self._names = Names(named_parameters)
            keys, _ = self._names.match(parameters, memories, strict=True)
            self._memories.load({keys[key]: memory for key, memory in memories.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Settings and memories; neither process groups nor the model can be pickled."""
        has = {
            "process_group": self._process_group is not None,
            "scaler": self.scaler is not None,
            "named_parameters": self._names.named,
        }
        kept = ("compressor", "by", "min_numel", "start_step", "check_every", "seed", "nonfinite")
        lost = tuple(name for name, had in has.items() if had) or self._lost
        return {
            **{name: getattr(self, name) for name in kept},
            "saved": self.state_dict(),
            "lost": lost,
        }

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        saved, lost = pickled.pop("saved"), pickled.pop("lost")
        nonfinite = pickled.pop("nonfinite")
        vars(self).update(pickled, scaler=None, _process_group=None, _names=Names())
        self._begin()
        self._lost, self._pickled, self.nonfinite = lost, saved["parameters"], nonfinite
        self.step = saved["step"]
        self._memories.load(saved["memories"])
        try:
            self._names.match(saved["parameters"], saved["memories"], strict=True)
        except ValueError:
            self._lost = tuple({*lost, "named_parameters"})

    # --- a bucket ---

    def reduce(self, bucket: dist.GradBucket) -> None:  # type: ignore[name-defined]
        """Replace a bucket's gradients by what those of all workers come to.

        Everything that may fail on one worker alone comes before the first collective, in which
        the workers tell each other of it.
        """
        group, buffer = self._group(), bucket.buffer()
        group.device = buffer.device
        if not self._bucket:
            self._settle()
            self._scale = self.scaler.get_scale() if self.scaler else 0.0
        work, failure = _Work(), None
        try:
            self._open(bucket, group, work)
        except Exception as error:  # anyone's compressor may run here
            failure = error
        try:
            if buffer.numel() or failure:
                self._exchange(buffer, group, work, failure)
        except CollectiveError as error:
            raise CollectiveError(f"{self._where()}: {error}") from error
        self._bucket += 1
        if bucket.is_last():
            self._end_pass()

    def _open(self, bucket: Any, group: Group, work: _Work) -> None:
        """Come as far as the first collective, unless a gradient is broken."""
        buffer: Tensor = bucket.buffer()
        if buffer.is_sparse:
            fact = "got sparse ones, make the embedding with sparse=False"
            raise ValueError(f"gradients must be dense to be compressed, {fact}")
        members = members_of(buffer, bucket.parameters(), self._names, self.min_numel)
        layout = [(member.key, *member.grad.shape, member.grad.dtype) for member in members]
        work.layout = digest(f"{self.step} {layout}")
        work.members = members
        work.scale = self._scale or 1.0
        work.broken = not all_finite([buffer])
        if not work.broken:
            work.units = units_of(members, together=self.by == "bucket", scale=work.scale)
            exchanges = [self._exchange_of(unit, group, work) for unit in work.units]
            work.rounds = Rounds(fused(exchanges), group)

    def _exchange_of(self, unit: Unit, group: Group, work: _Work) -> Exchange[Step]:
        dense = self._is_dense(unit)
        remembered = not dense or self.compressor.steers or unit.keys in self._memories
        work.remembered.append(remembered)
        if not remembered:
            return DENSE.dense(unit.whole, None)
        state = self._memories.take(unit.keys, unit.grads, unit.whole)
        if dense:
            return self.compressor.dense(unit.whole, state)
        name = ",".join(map(str, unit.keys))
        rng = Rng(self.seed, self.step, name, group.rank, group.workers)
        return self.compressor.exchange(unit.whole, state, rng)

    def _is_dense(self, unit: Unit) -> bool:
        return unit.dense or self.step < self.start_step

    def _exchange(
        self, buffer: Tensor, group: Group, work: _Work, failure: Exception | None
    ) -> None:
        """The collectives of a bucket, beginning with the one in which all tell how it stands."""
        told = self._tell(group, work, failure)
        if failure:
            raise failure
        if any(flags & BROKEN for _, flags, *_ in told):
            if work.rounds:
                work.rounds.close()
            self._average(buffer, group, work)
            return
        steps = self._finish(group, work, [length for *_, length in told])
        updates = [step.update if work.scale == 1 else step.update * work.scale for step in steps]
        if not all_finite(updates):
            self._average(buffer, group, work)
            return
        for unit, update, step in zip(work.units, updates, steps, strict=True):
            unit.write(update)
            self._count(unit, step)
        for unit, step, remembered in zip(work.units, steps, work.remembered, strict=True):
            if remembered:
                self._memories.put(unit.keys, step.state)
        if self.check_every and self.step % self.check_every == 0:
            first, last = work.members[0].key, work.members[-1].key
            self._written = f"{self._where()}, of parameters {first} to {last},"
            self._digest = digest_of(buffer)

    def _tell(self, group: Group, work: _Work, failure: Exception | None) -> list[list[int]]:
        """Compare everything that must be alike; what all workers told.

        Raises:
            RuntimeError: another worker failed, or something is not alike.
        """
        request = work.rounds.request if work.rounds else None
        asked = describe(request) if request else "nothing"
        flags = work.broken * BROKEN | (failure is not None) * FAILED
        own = [work.layout, flags, self._digest, digest(asked), group.length(request)]
        told = group.tell(*own)
        written, self._written, self._digest = self._written, "", 0
        if failure:
            return told
        failed = [worker for worker, (_, flags, *_) in enumerate(told) if flags & FAILED]
        if failed:
            fact = "its own error says why, this one is that of a worker that waited for it"
            raise DisagreementError(f"worker {failed[0]} failed before {self._where()}: {fact}")
        others = [worker for worker, (layout, *_) in enumerate(told) if layout != own[0]]
        if others:
            fact = f"at step {self.step} of worker {group.rank} it differs on {others}"
            raise DisagreementError(f"a bucket must be alike on all workers: {fact}")
        others = [worker for worker, (_, _, wrote, *_) in enumerate(told) if wrote != own[2]]
        if others:
            fact = f"worker {group.rank} and workers {others} have drifted apart"
            raise DisagreementError(f"{written} must be the same on all workers: {fact}")
        broken = any(flags & BROKEN for _, flags, *_ in told)
        others = [worker for worker, (_, _, _, what, _) in enumerate(told) if what != own[3]]
        if others and not broken:
            fact = f"worker {group.rank} asks for {asked} at {self._where()}, not so {others}"
            raise DisagreementError(f"workers must ask for the same collective: {fact}")
        return told

    def _finish(self, group: Group, work: _Work, lengths: Sequence[int]) -> list[Step]:
        assert work.rounds
        try:
            return work.rounds.finish(lengths)
        except CollectiveError:
            raise
        except Exception:
            if self.compressor.contract.rounds == 1:  # the next collective is that of a bucket
                with suppress(CollectiveError):
                    group.tell(0, FAILED, 0, 0, 0)
            raise

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

    def _was_skipped(self) -> bool:
        """Whether the scaler has skipped the last step, as a smaller scale tells."""
        return bool(self.scaler and self._scale and self.scaler.get_scale() < self._scale)

    def _settle(self) -> None:
        self._memories.settle(skipped=self._was_skipped())
        self._scale = 0.0

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
        state: of this worker.
        bucket: which DistributedDataParallel gives.
        sharded: what only FSDP gives.

    Returns:
        The bucket's buffer, in a future that is done.

    Raises:
        TypeError: called by FSDP, or by the reducer in Python of a compiled model.
        RuntimeError: the workers have different buckets, have drifted apart, one of them failed or
            cannot be reached, or the process group is another one.
        ValueError: a gradient is sparse, or a parameter is not one that the state knows.
    """
    if isinstance(bucket, tuple):
        raise TypeError(PYTHON_REDUCER)
    if not isinstance(bucket, dist.GradBucket):  # type: ignore[attr-defined]
        raise TypeError(FSDP.format(found=type(bucket).__name__))
    state.reduce(bucket)
    buffer: Tensor = bucket.buffer()
    devices: list[int | str | torch.device] = [buffer.device] if buffer.is_cuda else []
    future: Future[Tensor] = Future(devices=devices)
    future.set_result(buffer)
    return future


def _checked(compressor: str | Compressor) -> Compressor:
    found = from_spec(compressor)
    if "loss" in found.contract.needs:
        raise ValueError(f"compressor must not need the loss, which no hook is told, got {found}")
    return found


def _device(process_group: Any) -> torch.device:
    if "nccl" in dist.get_backend(process_group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
