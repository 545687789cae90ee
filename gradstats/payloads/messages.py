"""Messages between the workers of one training: payloads as bytes on the device of a gradient.

A message has the sections of `Payload.to_bytes`, and as many bytes:

    4 bytes    length of the numbers
    numbers    the sections that say how to read the others
    tensors    in order, as they lie in memory
    5 bytes    checksum of all before

A receiver needs the numbers on the host. Where all workers send the same ones it has them, and
nothing is copied from the device. Such messages are checked by size and checksum only: bytes of
unknown origin are for `from_bytes`, which checks every claim.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from gradstats.payloads import KINDS, MAX_NUMEL
from gradstats.payloads.base import Payload, written
from gradstats.payloads.index_codes import read_indices
from gradstats.payloads.wire import PayloadError, Reader, raw_view, refused

FRONT = struct.Struct("<I")
CHECK = 5  # bytes of a checksum
WORD = 8
LANES = 512  # words that are summed side by side
PHI = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 divided by the golden ratio, odd


class Message:
    """A payload on its way to another worker.

    Args:
        payload: what is sent.

    Attributes:
        head: the length of the numbers, and the numbers.
        nbytes: length of the message, that of `payload.to_bytes()`.
    """

    def __init__(self, payload: Payload) -> None:
        sections = list(written(payload))
        numbers = b"".join(each for each in sections if isinstance(each, bytes))
        self.head = FRONT.pack(len(numbers)) + numbers
        self._tensors = [raw_view(each) for each in sections if isinstance(each, Tensor)]
        self.nbytes = len(self.head) + sum(map(len, self._tensors)) + CHECK

    def write(self, room: Tensor, head: Tensor, seed: int) -> None:
        """Put it into the first bytes of a room, and 0 into the rest.

        Args:
            room: uint8 `[nbytes or more]`, on the device of the payload, at a multiple of 8 bytes.
            head: the head, uint8 on that device.
            seed: what sender and receiver know of the message otherwise.
        """
        content, check = room[: self.nbytes - CHECK], room[self.nbytes - CHECK : self.nbytes]
        torch.cat([head, *self._tensors], out=content)
        check.copy_(checksum(content, seed))
        room[self.nbytes :].zero_()


def read(room: Tensor, head: bytes, seed: int) -> tuple[Payload, Tensor]:
    """The payload of a message, whose tensors are views of the message where they can be.

    Args:
        room: uint8, with the message in its first bytes, at a multiple of 8 bytes.
        head: of the message, or more of its bytes.
        seed: as in `Message.write`.

    Returns:
        The payload, and whether its checksum is right: a bool on its device, `[]`.

    Raises:
        PayloadError: what the numbers claim has no room.
    """
    (length,) = FRONT.unpack_from(head)
    start = FRONT.size + length
    reader = MessageReader(room[start:], memoryview(head)[FRONT.size : start])
    payload: Payload = reader.payload(MAX_NUMEL)
    reader.end()
    end = start + reader.used
    intact = (checksum(room[:end], seed) == room[end : end + CHECK]).all()
    return payload.to(room.device), intact


def checksum(content: Tensor, seed: int) -> Tensor:
    r"""The upper bytes of a weighted sum of 64-bit words: uint8 `[5]`, on the content's device.

    .. math:: c = \varphi\left(2^{32}\,\text{seed} + n + \sum_i (2 (i \bmod 512) + 1) w_i\right)
              \bmod 2^{64}

    It differs if one bit has changed, or if two unlike words that lie less than 4 kB apart have
    changed places; after most other changes too, of n and the seed among them.

    Args:
        content: uint8 `[n]`, contiguous, at a multiple of 8 bytes.
        seed: an integer.
    """
    whole = len(content) // WORD
    words = content[: whole * WORD].view(torch.int64) if whole else content.new_zeros(0).long()
    rows = whole // LANES
    lanes = words[: rows * LANES].view(rows, LANES).sum(0)
    lanes[: whole - rows * LANES] += words[rows * LANES :]
    weights = torch.arange(LANES, device=content.device).mul_(2).add_(1)
    last = torch.zeros(WORD, dtype=torch.uint8, device=content.device)
    last[: len(content) - whole * WORD] = content[whole * WORD :]
    total = (lanes * weights).sum() + last.view(torch.int64) * (2 * LANES + 1)
    start = ((seed << 32) + len(content)) % (1 << 63)
    return ((total + start) * PHI).view(torch.uint8)[-CHECK:]


class MessageReader(Reader):
    """A reader of a message of another worker of the same training: it believes what it reads.

    Args:
        room: uint8, with the tensors one behind the other from its start.
        numbers: the other sections.

    Attributes:
        used: bytes of the tensors that were read.
    """

    foreign = False

    def __init__(self, room: Tensor, numbers: memoryview) -> None:
        super().__init__(numbers, KINDS, MAX_NUMEL)
        self._room, self.used = room, 0

    def checks(self, elements: int) -> bool:
        """Nothing is decoded only to be checked."""
        return False

    def tensor(self, count: int, dtype: torch.dtype) -> Tensor:
        """`[count]`, a view of the message where its alignment allows."""
        start, self.used = self.used, self.used + count * dtype.itemsize
        if self.used + CHECK > len(self._room):
            fact = f"{self.used} bytes of tensors are due, {len(self._room) - CHECK} there"
            raise PayloadError(f"cannot decode payload: {fact}")
        part = self._room[start : self.used]
        aligned = part.storage_offset() % dtype.itemsize == 0
        return (part if aligned else part.clone()).view(dtype)

    def indices(self, count: int, numel: int, code: str) -> Tensor:
        """See `Reader.indices`; of a message that is not intact, any in range."""
        data = self.tensor(self.number(len(self._room), "length"), torch.uint8)
        with refused():
            return read_indices(data, count, numel, code)
