"""Any compressor as the communication hook of DistributedDataParallel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gradstats.collectives import Group, Seconds, Traffic, digest
from gradstats.compressors import MIN_NUMEL, AllReduce, Compressor, Rng, Step
from gradstats.compressors import compressor as from_spec
from gradstats.compressors.low_rank import dense
from gradstats.exchange import Exchange, drive, fused
from gradstats.memories import Memories

By = Literal["bucket", "parameter"]
FSDP = (
    "compress_hook must be given a bucket of DistributedDataParallel, got {found}: FSDP reduces "
    "gradients to shards, where no worker has the whole that a compressor works on. Train with "
    "DistributedDataParallel; what can be compressed under FSDP are the shards, between the "
    "replicas of a hybrid-sharded model, by a hook of your own around gradstats.exchange.drive"
)
TRIAL = (64, 48)  # of a matrix that is exchanged before the training


@dataclass(frozen=True, eq=False)
class _Member:
    """A parameter of a bucket.

    Attributes:
        number: from the last of the model.
        grad: a view into the bucket, shaped as the parameter.
    """

    number: int
    grad: Tensor


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
        min_numel: parameters of fewer elements, and those of one dimension, are averaged as they
            are.
        start_step: everything is, in the steps before.
        seed: of random methods; global generators are not touched.
        scaler: the GradScaler of the training: memories then hold gradients without its scale, and
            outlast its changes.

    Attributes:
        step: backward passes with communication so far.
        traffic: what this worker moved, see `Traffic`.
        seconds: where the time of the hook went.
        khat_over_k: elements sent over elements asked for in the last step; NaN without a ratio.
        nonfinite: buckets that were averaged as they are because a worker had a NaN or inf there;
            memories are left as they were.

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
        seed: int = 0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.compressor = _checked(compressor)
        if by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
        for name, number, least in (("min_numel", min_numel, 1), ("start_step", start_step, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {number!r}")
        self.by: By = "parameter" if "matrix" in self.compressor.contract.needs else by
        self.min_numel, self.start_step = min_numel, start_step
        self.seed, self.scaler = seed, scaler
        self.step = self.nonfinite = 0
        self.khat_over_k = math.nan
        self._sent = self._asked = 0
        self._numbers: dict[Tensor, int] = {}
        self._memories = Memories(self.compressor)
        self._process_group = process_group
        self._joined: Group | None = None
        if dist.is_available() and dist.is_initialized():
            self._join()

    def _join(self) -> Group:
        """Meet the other workers; refuses what cannot work."""
        self._joined = group = Group(self._process_group)
        group.device = _device(self._process_group)
        self._agree_on_settings()
        self._try()
        return group

    @property
    def _group(self) -> Group:
        # trainers that set up torch.distributed themselves are handed a state before they do
        return self._joined or self._join()

    @property
    def traffic(self) -> Traffic:
        """See the class."""
        return self._group.traffic

    @property
    def seconds(self) -> Seconds:
        """See the class."""
        return self._group.seconds

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same on all workers."""
        return {
            "compressor": str(self.compressor),
            "by": self.by,
            "min_numel": self.min_numel,
            "start_step": self.start_step,
            "seed": self.seed,
            "workers": self._group.workers,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of this worker holds; each worker has memories of its own.

        Dicts, tuples, numbers and tensors on the CPU. Parameters go by their numbers from the last
        of the model to the first, so that the buckets may differ where it is loaded.
        """
        return {
            "settings": self.settings,
            "worker": self._group.rank,
            "step": self.step,
            "memories": self._memories.saved(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint of this worker; before the first backward pass.

        Raises:
            ValueError: of other settings, of another worker, or too late.
        """
        own = {**self.settings, "worker": self._group.rank}
        theirs = {**saved["settings"], "worker": saved["worker"]}
        for name, value in own.items():
            if theirs.get(name) != value:
                got = f"got one of {theirs.get(name)!r}"
                raise ValueError(f"a checkpoint must be of {name} {value!r}, {got}")
        if self._numbers:
            rule = "load_state_dict must be called before the first backward pass"
            raise ValueError(f"{rule}, got it at step {self.step}")
        self.step = saved["step"]
        self._memories.load(saved["memories"])

    def reduce(self, bucket: dist.GradBucket) -> None:  # type: ignore[name-defined]
        """Replace a bucket's gradients by what those of all workers come to."""
        buffer = bucket.buffer()
        if buffer.is_sparse:
            fact = "got sparse ones, make the embedding with sparse=False"
            raise ValueError(f"gradients must be dense to be compressed, {fact}")
        self._group.device = buffer.device
        members = self._members(bucket)
        broken = self._tell(members, _broken(buffer))
        self.nonfinite += broken
        if broken or self.step < self.start_step:
            buffer.copy_(self._group.perform(AllReduce(buffer, "mean")))
        else:
            self._compress(members)
        if bucket.is_last():
            self.step += 1
            self.khat_over_k = self._sent / self._asked if self._asked else math.nan
            self._sent = self._asked = 0

    def _members(self, bucket: dist.GradBucket) -> list[_Member]:  # type: ignore[name-defined]
        """The bucket's parameters by number, in whatever order they lie in it.

        They are numbered in the first backward pass, where the buckets go from the model's last
        parameter to its first; then the buckets are built anew, in another order.
        """
        pairs = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
        for parameter, _ in reversed(pairs):
            self._numbers.setdefault(parameter, len(self._numbers))
        members = [_Member(self._numbers[parameter], grad) for parameter, grad in pairs]
        return sorted(members, key=lambda member: member.number)

    def _tell(self, members: Sequence[_Member], broken: bool) -> bool:
        """Compare layouts with the other workers; whether a gradient of any of them is broken."""
        layout = [(member.number, *member.grad.shape) for member in members]
        own = digest(f"{self.step} {layout}")
        told = self._group.tell(own, int(broken))
        others = [worker for worker, (theirs, _) in enumerate(told) if theirs != own]
        if others:
            fact = f"at step {self.step} of worker {self._group.rank} it differs on {others}"
            raise RuntimeError(f"a bucket must be alike on all workers: {fact}")
        return any(flag for _, flag in told)

    def _compress(self, members: Sequence[_Member]) -> None:
        large = [member for member in members if self._is_large(member.grad)]
        small = [member for member in members if not self._is_large(member.grad)]
        each = [[member] for member in large]
        units = [large] if large and self.by == "bucket" else each
        scale = self.scaler.get_scale() if self.scaler else 1.0
        for member in large if scale != 1 else ():
            member.grad.div_(scale)  # a power of 2: exact
        exchanges = [self._exchange(unit) for unit in units]
        exchanges += [dense(member.grad, None) for member in small]
        steps = drive(fused(exchanges), self._group, check=False)
        for unit, step in zip([*units, *([member] for member in small)], steps, strict=True):
            updates = torch.split(step.update.reshape(-1), [m.grad.numel() for m in unit])
            for member, update in zip(unit, updates, strict=True):
                member.grad.copy_(update.view_as(member.grad))
        for member in large if scale != 1 else ():
            member.grad.mul_(scale)
        for unit, step in zip(units, steps, strict=False):
            self._memories.put(_keys(unit), _grads(unit), step.state)
            if self.compressor.ratio_asked is not None:
                self._sent += step.sent.count
                self._asked += self.compressor.target_count(step.sent.numel)

    def _is_large(self, grad: Tensor) -> bool:
        return grad.dim() > 1 and grad.numel() >= self.min_numel

    def _exchange(self, unit: Sequence[_Member]) -> Exchange[Step]:
        grads, keys = _grads(unit), _keys(unit)
        whole = grads[0] if self.by == "parameter" else torch.cat([g.reshape(-1) for g in grads])
        name = ",".join(map(str, keys))
        rng = Rng(self.seed, self.step, name, self._group.rank, self._group.workers)
        return self.compressor.exchange(whole, self._memories.take(keys, grads, whole), rng)

    def _agree_on_settings(self) -> None:
        own = digest(str(self.settings))
        others = [worker for worker, (told,) in enumerate(self._group.tell(own)) if told != own]
        if others:
            fact = f"got {self.settings} on worker {self._group.rank}, others on {others}"
            raise ValueError(f"settings must be the same on all workers, {fact}")

    def _try(self) -> None:
        """Exchange a matrix and a vector; what a backend lacks it says now."""
        group = self._group
        numbers = torch.arange(1.0, math.prod(TRIAL) + 1, device=group.device)
        rng = Rng(self.seed, 0, "trial", group.rank, group.workers)
        exchanges = [
            self.compressor.exchange(grad, self.compressor.init(grad), rng)
            for grad in (numbers.view(TRIAL), numbers)
        ]
        try:
            drive(fused(exchanges), group)
        except (RuntimeError, NotImplementedError) as error:
            backend = dist.get_backend(group.group)
            raise RuntimeError(
                f"cannot exchange {self.compressor} over the backend {backend}: {error}"
            ) from error
        group.traffic, group.seconds = Traffic(), Seconds()


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
        TypeError: called by FSDP.
        RuntimeError: the workers have different buckets.
    """
    if not isinstance(bucket, dist.GradBucket):  # type: ignore[attr-defined]
        raise TypeError(FSDP.format(found=type(bucket).__name__))
    state.reduce(bucket)
    buffer: Tensor = bucket.buffer()
    devices: list[int | str | torch.device] = [buffer.device] if buffer.is_cuda else []
    future: Future[Tensor] = Future(devices=devices)
    future.set_result(buffer)
    return future


def _keys(unit: Sequence[_Member]) -> tuple[int, ...]:
    return tuple(member.number for member in unit)


def _grads(unit: Sequence[_Member]) -> list[Tensor]:
    return [member.grad for member in unit]


def _broken(buffer: Tensor) -> bool:
    """Whether a NaN or inf is in it."""
    return not bool(torch.linalg.vector_norm(buffer, math.inf).isfinite())


def _checked(compressor: str | Compressor) -> Compressor:
    found = from_spec(compressor)
    if "loss" in found.contract.needs:
        raise ValueError(f"compressor must not need the loss, which no hook is told, got {found}")
    return found


def _device(process_group: Any) -> torch.device:
    if "nccl" in dist.get_backend(process_group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
