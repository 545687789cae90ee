"""What collectives give to the workers of a process group."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from gradstats.compressors import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    Payload,
    ReduceScatter,
    from_bytes,
)
from gradstats.exchange.counts import Seconds, Traffic
from gradstats.exchange.reducing import (
    WORD,
    check_parts,
    incoming,
    message_nbytes,
    outgoing,
    share_of,
)

# its name from torch 2.13 on
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def describe(request: Collective) -> str:
    """Describe a collective by what all workers must agree on."""
    name = type(request).__name__
    if isinstance(request, AllReduce):
        tensor = request.tensor
        levels = f", {request.levels} levels" if request.levels else ""
        return f"{name}({request.op}, {tensor.dtype}, {list(tensor.shape)}{levels})"
    if isinstance(request, ReduceScatter):
        lengths = [tensor.numel() for tensor in request.tensors]
        return f"{name}({request.op}, {request.tensors[0].dtype}, {lengths})"
    if isinstance(request, AllToAll):
        numels = [each and each.numel for each in request.payloads]
        return f"{name}({numels})" if None not in numels else f"{name}({len(numels)})"
    return f"{name}(root={request.root})" if isinstance(request, Broadcast) else name


def digest(text: str) -> int:
    """A 63-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class CollectiveError(RuntimeError):
    """A collective failed: the backend cannot do it, or another worker cannot be reached."""


def _with_length(data: bytes, length: int) -> bytes:
    return len(data).to_bytes(WORD, "little") + data.ljust(length - WORD, b"\0")


class Group:
    """A process group that carries exchanges. All workers must make the same calls in one order.

    Args:
        group: A group of `torch.distributed`; None is the default one.
        device: The device of the tensors, and of the bytes that are sent.

    Attributes:
        rank: Rank of this worker in the group.
        workers: Number of workers.
        traffic: What this worker sent, see `Traffic`.
        seconds: Time of this worker by phase, see `Seconds`.
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
            request: The collective, alike on all workers.
            lengths: Message lengths of all workers, see `length`; None exchanges them first.

        Raises:
            CollectiveError: the backend cannot do it, or another worker cannot be reached.
        """
        if isinstance(request, AllReduce):
            return self._reduce(request)
        if isinstance(request, ReduceScatter):
            return self._scatter(request)
        if lengths is None:
            lengths = [length for (length,) in self.share(self.length(request))]
        if isinstance(request, AllGather):
            return self._gather(request, lengths)
        if isinstance(request, AllToAll):
            return self._send_to_all(request, message_nbytes(max(lengths)))
        return self._spread(request, lengths[request.root])

    def length(self, request: Collective | None) -> int:
        """Length in bytes of this worker's message, which the others need to receive it."""
        if isinstance(request, Broadcast) and request.root != self.rank:
            return 0
        if isinstance(request, AllToAll):
            return max((each.nbytes for each in request.payloads if each), default=0)
        payload = request.payload if isinstance(request, AllGather | Broadcast) else None
        return payload.nbytes if payload else 0

    def share(self, *facts: int) -> list[list[int]]:
        """Gather a few 64-bit integers of each worker: one list per worker, by rank."""
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

    def _send_to_all(self, request: AllToAll, length: int) -> list[Payload | None]:
        """Equal messages: each begins with its length, and the rest of the room is 0."""
        payloads, n = request.payloads, self.workers
        check_parts(payloads, n)
        back = [payloads[(2 * self.rank - sender) % n] for sender in range(n)]
        sent = [length if payload else 0 for payload in payloads]
        received = [length if payload else 0 for payload in back]
        data = [_with_length(each.to_bytes(), length) for each in payloads if each]
        message = self._tensor(b"".join(data), sum(sent))
        buffer = message.new_empty(sum(received))
        with self._communicating("all_to_all"):
            dist.all_to_all_single(buffer, message, received, sent, group=self.group)
        others = sum(sent) - sent[self.rank]
        self.traffic.count("all_to_all", sum(each.nbytes for each in payloads if each), others)
        parts: list[Payload | None] = []
        for sender, part in enumerate(torch.split(buffer, received)):
            own = sender == self.rank
            parts.append(payloads[sender] if own else self._from_message(part))
        return parts

    def _from_message(self, message: Tensor) -> Payload | None:
        if not len(message):
            return None
        length = int.from_bytes(message[:WORD].cpu().numpy().tobytes(), "little")
        return self._payload(message[WORD:], length)

    def _scatter(self, request: ReduceScatter) -> Tensor:
        """Of tensors padded to the longest: what backends scatter must be of equal lengths."""
        check_parts(request.tensors, self.workers)
        shares = [share_of(tensor, request.op, self.workers) for tensor in request.tensors]
        widest = max(len(share) for share in shares)
        flat = torch.cat([pad(share, (0, widest - len(share))) for share in shares])
        own = flat.new_empty(widest)
        with self._communicating("reduce_scatter"):
            reduce_scatter(own, flat, group=self.group)
        self.traffic.count("reduce_scatter", flat.nbytes, flat.nbytes - own.nbytes)
        return own[: len(shares[self.rank])]

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
