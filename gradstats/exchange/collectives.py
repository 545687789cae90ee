"""What collectives do, over simulated workers and over a process group; counts what they move."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradstats.compressors import AllGather, AllReduce, Broadcast, Collective, Payload, from_bytes
from gradstats.kernels import coding

KINDS = ("all_reduce", "all_gather", "broadcast", "control")
WORD = 8  # bytes of an integer
MOST_DIGITS = 1 << 16  # levels of what is packed
INT32 = 1 << 31


@dataclass
class Volume:
    """What went through collectives of one kind.

    Attributes:
        calls: how many there were.
        nbytes: bytes that this worker handed to them.
        wire: bytes that this worker sends where they run on a ring: 2 (n-1)/n of what is
            all-reduced, n-1 times the longest payload that is gathered, once what is broadcast.
    """

    calls: int = 0
    nbytes: int = 0
    wire: float = 0.0


@dataclass
class Traffic:
    """What one worker moved, by kind of collective; `control` is what sets up the others.

    Attributes:
        volumes: by kind.
        sum_bits: of the widest sum of integers, 0 without one.
        fp16_error: the most that a float sum or mean would lose in float16, ‖s₁₆ - s‖/‖s‖; inf
            where it would overflow, NaN where it was not asked for.
    """

    volumes: dict[str, Volume] = field(default_factory=lambda: {kind: Volume() for kind in KINDS})
    sum_bits: int = 0
    fp16_error: float = math.nan

    def count(self, kind: str, nbytes: int, wire: float) -> None:
        """One more collective."""
        volume = self.volumes[kind]
        volume.calls += 1
        volume.nbytes += nbytes
        volume.wire += wire

    @property
    def nbytes(self) -> int:
        """Bytes handed in, control aside."""
        return sum(self.volumes[kind].nbytes for kind in KINDS[:-1])

    @property
    def wire(self) -> float:
        """Bytes sent on a ring, control included."""
        return sum(volume.wire for volume in self.volumes.values())

    def reduced(self, request: AllReduce, nbytes: int, workers: int) -> None:
        """One all-reduce."""
        self.count("all_reduce", nbytes, 2 * (workers - 1) / workers * nbytes)
        if request.levels and request.op != "max":
            self.sum_bits = max(self.sum_bits, (workers * (request.levels - 1)).bit_length())


@dataclass
class Seconds:
    """Where the time of exchanges went, on this worker's clock.

    Attributes:
        encode: until the last collective was asked for, communication aside.
        communicate: in collectives, with the wait for slower workers.
        decode: reading payloads, and what came after the last collective.
    """

    encode: float = 0.0
    communicate: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.encode + self.communicate + self.decode


def describe(request: Collective) -> str:
    """What all workers must agree on before a collective."""
    name = type(request).__name__
    if isinstance(request, AllReduce):
        tensor = request.tensor
        levels = f", {request.levels} levels" if request.levels else ""
        return f"{name}({request.op}, {tensor.dtype}, {list(tensor.shape)}{levels})"
    return f"{name}(root={request.root})" if isinstance(request, Broadcast) else name


def digest(text: str) -> int:
    """63 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def outgoing(request: AllReduce, workers: int) -> Tensor:
    """What one worker puts into an all-reduce; never the tensor of the request itself.

    A mean is divided before the sum, as DistributedDataParallel does, so that no sum leaves the
    range of which every operand and the mean are. Integers to be added become digits of a base
    that holds their sums.
    """
    tensor, levels = request.tensor, request.levels
    if not levels:
        return _share(tensor, workers) if request.op == "mean" else tensor.clone()
    if request.op == "max":  # of packed digits the first would decide for all in its word
        return tensor.to(_integers(levels), copy=True)
    base = _base(levels, workers)
    symbols = tensor.reshape(-1)
    if base > MOST_DIGITS:
        return symbols.to(torch.int32 if base <= INT32 else torch.int64, copy=True)
    packed = coding.pack(symbols, base)
    return torch.nn.functional.pad(packed, (0, -len(packed) % WORD)).view(torch.int64)


def incoming(total: Tensor, request: AllReduce, workers: int) -> Tensor:
    """The result of an all-reduce, from the sum (or maximum) of what went out."""
    if not request.levels:
        return total
    if request.op == "max":
        return total.to(torch.int64)
    base, numel = _base(request.levels, workers), request.tensor.numel()
    if base <= MOST_DIGITS:
        packed = total.view(torch.uint8)[: coding.packed_nbytes(numel, base)]
        total = coding.unpack(packed, numel, base)
    total = total.view(request.tensor.shape)
    return total.float() / workers if request.op == "mean" else total.to(torch.int64)


def _share(tensor: Tensor, workers: int) -> Tensor:
    """x/n; in 16 bits never so far from 0 that the rounded sum of n of them is not finite."""
    share = tensor / workers
    if share.element_size() > 2 or workers == 1:
        return share
    most = _largest_share(share.dtype, workers)
    return torch.where(share.isinf(), share, share.clamp(-most, most))


@cache
def _largest_share(dtype: torch.dtype, workers: int) -> float:
    """The largest number of which n have a finite sum, one by one and in pairs of pairs.

    Example:
        >>> _largest_share(torch.float16, 2), _largest_share(torch.float16, 3)  # of at most 65,504
        (32752.0, 21824.0)
    """
    share = torch.tensor(torch.finfo(dtype).max / workers).to(dtype).reshape(1)
    while True:
        in_turn, pairs = torch.zeros_like(share), [share] * workers
        for _ in range(workers):
            in_turn = in_turn + share
        while len(pairs) > 1:
            pairs = [sum(pairs[i + 1 : i + 2], pairs[i]) for i in range(0, len(pairs), 2)]
        if (in_turn + pairs[0] * 0).isfinite():
            return float(share)
        share = (share.view(torch.int16) - 1).view(dtype)  # the next one down


def _integers(levels: int) -> torch.dtype:
    """The smallest integers that all backends compare, from 0 to `levels` - 1."""
    if levels <= 1 << 8:
        return torch.uint8
    return torch.int32 if levels <= INT32 else torch.int64


def _base(levels: int, workers: int) -> int:
    """At least n (levels - 1) + 1, such that no digit lies across two words."""
    base = workers * (levels - 1) + 1
    while base <= MOST_DIGITS and not _within_words(base):
        base = (1 << (base - 1).bit_length()) + 1
    return base


def _within_words(base: int) -> bool:
    bits = (base - 1).bit_length()
    return coding.bits_per_symbol(base) != bits or 8 * WORD % bits == 0


def simulated(
    requests: Sequence[Collective], ledgers: Sequence[Traffic], *, fp16: bool = False
) -> list[Any]:
    """What each of n workers gets; sums run in worker order and in the dtype of the tensors.

    Args:
        requests: of the workers, alike.
        ledgers: of the workers.
        fp16: also find what float sums would lose in float16.
    """
    n, first = len(requests), requests[0]
    if isinstance(first, AllReduce):
        tensors = [outgoing(request, n) for request in requests]  # type: ignore[arg-type]
        for ledger in ledgers:
            ledger.reduced(first, tensors[0].nbytes, n)
            if fp16 and first.op != "max" and not first.levels:
                error = _fp16_error(requests)  # type: ignore[arg-type]
                ledger.fp16_error = max(error, _zero_if_nan(ledger.fp16_error))
        result = incoming(_combined(tensors, first.op), first, n)
        return [result, *(result.clone() for _ in range(n - 1))]  # one may be worked on in place
    if isinstance(first, AllGather):
        payloads: list[Payload] = [request.payload for request in requests]  # type: ignore[misc,union-attr]
        longest = max(payload.nbytes for payload in payloads)
        for ledger, payload in zip(ledgers, payloads, strict=True):
            ledger.count("all_gather", payload.nbytes, (n - 1) * longest)
        return [_received(payloads, worker) for worker in range(n)]
    sent = requests[first.root].payload  # type: ignore[union-attr]
    assert sent is not None
    for worker, ledger in enumerate(ledgers):
        own = sent.nbytes if worker == first.root else 0
        ledger.count("broadcast", own, sent.nbytes if n > 1 else 0)
    return [sent if worker == first.root else deepcopy(sent) for worker in range(n)]


def _received(payloads: Sequence[Payload], worker: int) -> list[Payload]:
    """Those of the others are copies, as they are where they come over a network."""
    return [each if at == worker else deepcopy(each) for at, each in enumerate(payloads)]


def _combined(tensors: Sequence[Tensor], op: str) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = torch.maximum(total, tensor) if op == "max" else total.add_(tensor)
    return total


def _fp16_error(requests: Sequence[AllReduce]) -> float:
    """What the same sums, or means, of the tensors in float16 lose."""

    def total(dtype: torch.dtype) -> Tensor:
        tensors = [replace(request, tensor=request.tensor.to(dtype)) for request in requests]
        return _combined([outgoing(each, len(requests)) for each in tensors], "sum").double()

    exact, half = total(torch.float64), total(torch.float16)
    error = float((half - exact).norm() / exact.norm()) if exact.any() else 0.0
    return error if math.isfinite(error) else math.inf


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value


class CollectiveError(RuntimeError):
    """A collective failed: the backend cannot do it, or another worker cannot be reached."""


class Group:
    """A process group, as exchanges see it. All workers must make the same calls in one order.

    Args:
        group: of `torch.distributed`; None is the default one.
        device: where the tensors are, and where bytes must lie to be sent.

    Attributes:
        rank: of this worker in the group.
        workers: n.
        traffic: what this worker moved.
        seconds: where its time went.
    """

    def __init__(self, group: Any = None, device: torch.device | str = "cpu") -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("torch.distributed must be initialized first, got no process group")
        self.group, self.device = group, torch.device(device)
        self.rank, self.workers = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must have this process in it, got one that has not")
        self.traffic, self.seconds = Traffic(), Seconds()

    def perform(self, request: Collective, lengths: Sequence[int] | None = None) -> Any:
        """The result of one collective.

        Args:
            request: alike on all workers.
            lengths: of the messages of all workers, see `length`; without them they are told.

        Raises:
            CollectiveError: the backend cannot do it, or another worker cannot be reached.
        """
        if isinstance(request, AllReduce):
            return self._reduce(request)
        if lengths is None:
            lengths = [length for (length,) in self.tell(self.length(request))]
        if isinstance(request, AllGather):
            return self._gather(request, lengths)
        return self._spread(request, lengths[request.root])

    def length(self, request: Collective | None) -> int:
        """Bytes of this worker's message, which the others must know of to receive it."""
        if isinstance(request, Broadcast) and request.root != self.rank:
            return 0
        payload = request.payload if isinstance(request, AllGather | Broadcast) else None
        return payload.nbytes if payload else 0

    def tell(self, *facts: int) -> list[list[int]]:
        """The facts of all workers, by rank: 64-bit integers, equally many on each."""
        own = torch.tensor(facts, dtype=torch.int64, device=self.device)
        others = [torch.empty_like(own) for _ in range(self.workers)]
        with self._communicating("all_gather"):
            dist.all_gather(others, own, group=self.group)
        self.traffic.count("control", own.nbytes, (self.workers - 1) * own.nbytes)
        return [other.tolist() for other in others]

    def _reduce(self, request: AllReduce) -> Tensor:
        tensor = outgoing(request, self.workers)
        op = dist.ReduceOp.MAX if request.op == "max" else dist.ReduceOp.SUM
        with self._communicating("all_reduce"):
            dist.all_reduce(tensor, op, group=self.group)
        self.traffic.reduced(request, tensor.nbytes, self.workers)
        return incoming(tensor, request, self.workers)

    def _gather(self, request: AllGather, lengths: Sequence[int]) -> list[Payload]:
        data = request.payload.to_bytes()
        own = self._tensor(data, max(lengths))
        received = [torch.empty_like(own) for _ in lengths]
        with self._communicating("all_gather"):
            dist.all_gather(received, own, group=self.group)
        self.traffic.count("all_gather", len(data), (self.workers - 1) * len(own))
        payloads = [
            self._payload(each, length) if worker != self.rank else request.payload
            for worker, (each, length) in enumerate(zip(received, lengths, strict=True))
        ]
        return payloads

    def _spread(self, request: Broadcast, length: int) -> Payload | None:
        mine = self.rank == request.root
        data = request.payload.to_bytes() if mine and request.payload else b""
        message = self._tensor(data, length)
        with self._communicating("broadcast"):
            dist.broadcast(message, group=self.group, group_src=request.root)
        self.traffic.count("broadcast", len(data), length if self.workers > 1 else 0)
        return request.payload if mine else self._payload(message, length)

    def _tensor(self, data: bytes, length: int) -> Tensor:
        padded = torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)
        return padded.to(self.device)

    def _payload(self, message: Tensor, length: int) -> Payload:
        start = time.perf_counter()
        payload = from_bytes(message[:length].cpu().numpy().tobytes()).to(self.device)
        self.seconds.decode += time.perf_counter() - start
        return payload

    @contextmanager
    def _communicating(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            where = f"worker {self.rank} of {self.workers}"
            cause = "the backend cannot do it, or another worker has died or is stalled"
            raise CollectiveError(f"cannot {what} on {where}: {cause}: {error}") from error
        finally:
            self.seconds.communicate += time.perf_counter() - start
