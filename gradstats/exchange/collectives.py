"""What collectives give to the workers of a process group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
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
)
from gradstats.exchange.counts import Seconds, Traffic, on_ring
from gradstats.exchange.messaging import CollectiveError, Header, MessageError, Messenger
from gradstats.exchange.reducing import (
    check_parts,
    incoming,
    message_nbytes,
    outgoing,
    share_of,
)
from gradstats.kernels import recycling

# its name from torch 2.13 on
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


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
        self._messenger = Messenger(self.rank, self.workers)

    def perform(self, request: Collective, headers: Sequence[Header] | None = None) -> Any:
        """The result of one collective; `check` says later whether it arrived as it was sent.

        Args:
            request: The collective, alike on all workers.
            headers: Of all workers, see `header`; None exchanges them first.

        Raises:
            CollectiveError: the backend cannot do it, another worker cannot be reached, or the
                size of a message is wrong.
        """
        if isinstance(request, AllReduce):
            return self._reduce(request)
        if isinstance(request, ReduceScatter):
            return self._scatter(request)
        headers = headers or self._messenger.known_headers(request)
        if not headers:
            headers = [Header(*facts) for facts in self.share(*astuple(self.header(request)))]
        if isinstance(request, AllGather):
            return self._gather(request, headers)
        if isinstance(request, AllToAll):
            return self._send_to_all(request, headers)
        return self._spread(request, headers)

    def header(self, request: Collective | None) -> Header:
        """What the others need to receive this worker's messages."""
        start = time.perf_counter()
        header = self._messenger.header(request)
        self.seconds.encode += time.perf_counter() - start
        return header

    def forget(self) -> None:
        """Drop what is left of an exchange that was called off."""
        self._messenger.forget()

    def share(self, *facts: int) -> list[list[int]]:
        """Gather a few 64-bit integers of each worker: one list per worker, by rank."""
        return self.start_sharing(torch.tensor(facts, dtype=torch.int64, device=self.device))()

    def start_sharing(self, own: Tensor) -> Callable[[], list[list[int]]]:
        """Begin to share 64-bit integers on the device; returns what waits for those of all."""
        others = [torch.empty_like(own) for _ in range(self.workers)]
        with self._communicating("all_gather"):
            work = dist.all_gather(others, own, group=self.group, async_op=True)
        self.traffic.count("control", own.nbytes, (self.workers - 1) * own.nbytes)

        def shared() -> list[list[int]]:
            with self._communicating("all_gather"):
                work.wait()
            numbers: list[list[int]] = torch.stack(others).tolist()
            return numbers

        return shared

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add up floats in place; returns what waits for the end."""
        with self._communicating("all_reduce"):
            work = dist.all_reduce(tensor, group=self.group, async_op=True)
        self.traffic.count("all_reduce", tensor.nbytes, on_ring(tensor.nbytes, self.workers))

        def summed() -> None:
            with self._communicating("all_reduce"):
                work.wait()

        return summed

    def check(self, *others: Tensor) -> list[bool]:
        """Read a few bools from the device, and whether all messages until now were intact.

        Args:
            others: bools, `[]` each.

        Raises:
            MessageError: a message is damaged.
        """
        intact = self._messenger.intact()
        read: list[bool] = torch.stack([*intact, *others]).tolist() if intact or others else []
        if not all(read[: len(intact)]):
            fact = "its checksum is another than that of the worker who sent it"
            raise MessageError(f"cannot read a message on worker {self.rank}: {fact}")
        return read[len(intact) :]

    def _reduce(self, request: AllReduce) -> Tensor:
        tensor = outgoing(request, self.workers)
        op = dist.ReduceOp.MAX if request.op == "max" else dist.ReduceOp.SUM
        with self._communicating("all_reduce"):
            dist.all_reduce(tensor, op, group=self.group)
        self.traffic.reduced(request, tensor.nbytes, self.workers)
        return incoming(tensor, request, self.workers)

    def _gather(self, request: AllGather, headers: Sequence[Header]) -> list[Payload]:
        longest = max(header.nbytes for header in headers)
        sent = self._written(request, longest)
        rooms = [recycling.empty_like(sent) for _ in headers]
        rooms[self.rank] = sent
        with self._communicating("all_gather"):
            self._gather_rooms(rooms)
        nbytes = headers[self.rank].nbytes
        self.traffic.count("all_gather", nbytes, (self.workers - 1) * longest)
        payloads = self._read(request, dict(enumerate(rooms)), headers)
        return [payloads.get(worker, request.payload) for worker in range(self.workers)]

    def _gather_rooms(self, rooms: list[Tensor]) -> None:
        """Fill the rooms of all other workers; broadcasts take gloo half as long as a gather."""
        if self.device.type != "cpu" or dist.get_backend(self.group) != "gloo":
            dist.all_gather(rooms, rooms[self.rank], group=self.group)
            return
        under_way = [
            dist.broadcast(room, group=self.group, group_src=worker, async_op=True)
            for worker, room in enumerate(rooms)
        ]
        for work in under_way:
            work.wait()

    def _send_to_all(self, request: AllToAll, headers: Sequence[Header]) -> list[Payload | None]:
        n, room = self.workers, message_nbytes(max(header.nbytes for header in headers))
        sent = [room if payload else 0 for payload in request.payloads]
        received = [sent[(2 * self.rank - sender) % n] for sender in range(n)]
        flat = self._written(request, room)
        buffer = recycling.empty((sum(received),), torch.uint8, self.device)
        with self._communicating("all_to_all"):
            dist.all_to_all_single(buffer, flat, received, sent, group=self.group)
        nbytes = sum(payload.nbytes for payload in request.payloads if payload)
        self.traffic.count("all_to_all", nbytes, sum(sent) - sent[self.rank])
        parts = torch.split(buffer, received)
        rooms = {sender: part for sender, part in enumerate(parts) if len(part)}
        payloads = self._read(request, rooms, headers)
        own = request.payloads[self.rank]
        return [own if worker == self.rank else payloads.get(worker) for worker in range(n)]

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

    def _spread(self, request: Broadcast, headers: Sequence[Header]) -> Payload | None:
        root, length = request.root, headers[request.root].nbytes
        message = self._written(request, length)
        if root != self.rank:
            message = torch.empty(length, dtype=torch.uint8, device=self.device)
        with self._communicating("broadcast"):
            dist.broadcast(message, group=self.group, group_src=root)
        handed, wire = headers[self.rank].nbytes, length if self.workers > 1 else 0
        self.traffic.count("broadcast", handed, wire)
        return self._read(request, {root: message}, headers).get(root, request.payload)

    def _written(self, request: Collective, room: int) -> Tensor:
        start = time.perf_counter()
        flat = self._messenger.write(self._messenger.messages(request), room, self.device)
        self.seconds.encode += time.perf_counter() - start
        return flat

    def _read(
        self, request: Collective, rooms: dict[int, Tensor], headers: Sequence[Header]
    ) -> dict[int, Payload]:
        """Payloads by sender, without the one that this worker has."""
        start = time.perf_counter()
        messages, to = self._messenger.messages(request), 0
        if isinstance(request, AllToAll):
            to = self.rank
        others = {sender: room for sender, room in rooms.items() if sender != self.rank}
        payloads = self._messenger.read(others, messages[to], headers, to)
        self.seconds.decode += time.perf_counter() - start
        return payloads

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
