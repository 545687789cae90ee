"""How the workers of a process group write and read each other's messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gradstats.compressors import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    Payload,
    PayloadError,
    ReduceScatter,
)
from gradstats.exchange.reducing import check_parts
from gradstats.kernels import recycling
from gradstats.payloads.messages import Message, read

LENGTHS_ALONE, UNLIKE = -1, -2  # in the place of a digest
LONG = 1 << 12  # bytes of a head


class CollectiveError(RuntimeError):
    """A collective failed: the backend cannot do it, or another worker cannot be reached."""


class MessageError(CollectiveError):
    """A message arrived damaged, or with another size than its numbers say."""


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


@dataclass(frozen=True)
class Header:
    """What the others must know of a worker's messages to receive them.

    Attributes:
        nbytes: Length of the longest message.
        head: Length of the longest head, see `payloads.messages`.
        digest: Of lengths and heads of all messages. Where it is that of the receiver's own
            ones, heads need not be read; -1 where only lengths are known.
    """

    nbytes: int = 0
    head: int = 0
    digest: int = 0


class Messenger:
    """Writes a worker's messages, and reads those of the others.

    All workers must make the same calls in one order.

    Args:
        rank: Of this worker.
        workers: Number of workers.
    """

    def __init__(self, rank: int, workers: int) -> None:
        self._rank, self._workers = rank, workers
        self._prepared: tuple[Collective | None, list[Message | None]] = (None, [])
        self._collectives = 0
        self._intact: list[Tensor] = []

    def messages(self, request: Collective | None) -> list[Message | None]:
        """What this worker sends; in an all-to-all by receiver."""
        if self._prepared[0] is not request:
            payloads = self._payloads(request)
            messages = [Message(each) if each else None for each in payloads]
            self._prepared = (request, messages) if messages else (None, [])
            return messages
        return self._prepared[1]

    def header(self, request: Collective | None) -> Header:
        """What the others need to receive this worker's messages."""
        messages = self.messages(request)
        longest = max((each.nbytes for each in messages if each), default=0)
        heads = max((len(each.head) for each in messages if each), default=0)
        if heads > LONG:  # entropy-coded data: no other worker has the same
            return Header(longest, heads, UNLIKE - self._rank)
        facts = [each and (each.nbytes, each.head) for each in messages]
        return Header(longest, heads, digest(repr(facts)))

    def known_headers(self, request: Collective) -> list[Header]:
        """Headers of all workers, where the request has the lengths of their messages.

        Raises:
            ValueError: the message of this worker has another length: its method promises a
                fixed length (`Contract.fixed_length`), and does not keep it.
        """
        payloads = request.alike if isinstance(request, AllGather) else ()
        headers = [_lengths(Message(each)) for each in payloads]
        for own in self.messages(request) if headers else []:
            if own and _lengths(own) != headers[self._rank]:
                fact = f"got {own.nbytes} bytes, {headers[self._rank].nbytes} before"
                raise ValueError(f"payloads of a fixed_length must be equally long, {fact}")
        return headers

    def write(self, messages: Sequence[Message | None], room: int, device: torch.device) -> Tensor:
        """Messages one behind the other, each in its room: uint8 on the device.

        Args:
            messages: One for all receivers, or one by receiver.
            room: Bytes for each; with several messages a multiple of 8.
            device: That of the payloads.
        """
        self._collectives += 1
        going = {to: message for to, message in enumerate(messages) if message}
        flat = recycling.empty((room * len(going),), torch.uint8, device)
        heads = _heads_on(device, list(going.values()))
        parts = torch.split(flat, room) if going else ()
        for (to, message), part, head in zip(going.items(), parts, heads, strict=True):
            message.write(part, head, self._seed(self._rank, to))
        return flat

    def read(
        self,
        rooms: Mapping[int, Tensor],
        own: Message | None,
        headers: Sequence[Header],
        receiver: int,
    ) -> dict[int, Payload]:
        """The payloads of messages from other workers, by sender; `intact` belongs to them.

        Args:
            rooms: By sender, uint8 on the device.
            own: What this worker sent to itself, or None.
            headers: Of all workers.
            receiver: 0 if the same message went to all.

        Raises:
            MessageError: what a message claims has no room in it.
        """
        same = own if headers[self._rank].digest != LENGTHS_ALONE else None
        alike = [i for i in rooms if same and headers[i] == headers[self._rank]]
        unlike = [i for i in rooms if i not in alike]
        heads = dict.fromkeys(alike, own.head if own else b"")
        others = _in_one_copy([rooms[i][: headers[i].head] for i in unlike])
        heads |= zip(unlike, others, strict=True)
        self._prepared = None, []
        return {i: self._payload(room, heads[i], i, receiver) for i, room in rooms.items()}

    def forget(self) -> None:
        """Drop what is left of an exchange that was called off."""
        self._prepared, self._intact = (None, []), []

    def intact(self) -> list[Tensor]:
        """Whether messages read since the last call are as they were sent: bools `[]`."""
        flags, self._intact = self._intact, []
        return flags

    def _payload(self, room: Tensor, head: bytes, sender: int, receiver: int) -> Payload:
        try:
            payload, intact = read(room, head, self._seed(sender, receiver))
        except PayloadError as error:
            fact = f"of worker {sender} on worker {self._rank}: {error}"
            raise MessageError(f"cannot read a message {fact}") from error
        self._intact.append(intact)
        return payload

    def _payloads(self, request: Collective | None) -> Sequence[Payload | None]:
        if isinstance(request, AllToAll):
            check_parts(request.payloads, self._workers)
            return request.payloads
        if isinstance(request, Broadcast) and request.root != self._rank:
            return [None]
        return [request.payload] if isinstance(request, AllGather | Broadcast) else []

    def _seed(self, sender: int, receiver: int) -> int:
        """A number that no other message of the group has."""
        return (self._collectives * self._workers + sender) * self._workers + receiver


def _lengths(message: Message) -> Header:
    return Header(message.nbytes, len(message.head), LENGTHS_ALONE)


def _heads_on(device: torch.device, messages: Sequence[Message]) -> Sequence[Tensor]:
    """Heads of messages as uint8 on a device, in one copy to it."""
    if not messages:
        return ()
    together = torch.frombuffer(
        bytearray().join(each.head for each in messages), dtype=torch.uint8
    )
    heads: Sequence[Tensor] = torch.split(
        together.to(device), [len(each.head) for each in messages]
    )
    return heads


def _in_one_copy(parts: Iterable[Tensor]) -> list[bytes]:
    """The bytes of several tensors on the host."""
    parts = list(parts)
    together = torch.cat(parts).cpu().numpy().tobytes() if parts else b""
    ends = accumulate(map(len, parts))
    return [together[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
