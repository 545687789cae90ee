"""What is sent: self-describing payloads whose `nbytes` is the length of their bytes."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.compressors.rng import Stream

MAGIC = b"GSPL"
VERSION = 1
# magic, version, kind, dtype, 0; numel, count, two key words; CRC-32 of all other bytes
HEADER = struct.Struct("<4s4B2Q2II")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RAW = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class PayloadError(ValueError):
    """Bytes that are not a payload, or not an intact one."""


class Payload(Protocol):
    """A message that stands for a gradient of `numel` elements, `count` of which travel."""

    @property
    def numel(self) -> int:
        """Number of elements of the gradient."""

    @property
    def count(self) -> int:
        """Number of elements that are sent."""

    @property
    def nbytes(self) -> int:
        """Length of `to_bytes()`."""

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the decoded gradient to `out`, `[numel]`; time goes with count."""

    def remove_from(self, residual: Tensor) -> None:
        """Subtract the decoded gradient from `residual`, `[numel]`; NaN and inf leave 0."""

    def decode(self) -> Tensor:
        """The gradient as the receiver sees it, `[numel]`, in the dtype of the values."""

    def to_bytes(self) -> bytes:
        """Bytes that `from_bytes` reads without knowing anything else."""


@dataclass(frozen=True, eq=False)
class Message(ABC):
    """Values of a gradient under way, `[count]`, and what tells their places: one Payload.

    Attributes:
        values: in the dtype in which they travel.
        numel: number of elements of the gradient.
    """

    values: Tensor
    numel: int
    kind: ClassVar[int]
    summable: ClassVar[bool]  # on all workers for the same elements: an all-reduce may add them

    @property
    def count(self) -> int:
        """Number of elements that are sent."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Length of `to_bytes()`: a header of 36 bytes, the values, any indices."""
        return HEADER.size + self.values.nbytes

    @abstractmethod
    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the decoded gradient to `out`, `[numel]`; time goes with count."""

    @abstractmethod
    def remove_from(self, residual: Tensor) -> None:
        """Subtract the decoded gradient from `residual`, `[numel]`; NaN and inf leave 0."""

    def decode(self) -> Tensor:
        """The gradient as the receiver sees it, `[numel]`, in the dtype of the values."""
        out = self.values.new_zeros(self.numel)
        self.add_to(out)
        return out

    def with_values(self, values: Tensor) -> Self:
        """The same places with other values: what an all-reduce leaves."""
        return replace(self, values=values)

    def to_bytes(self) -> bytes:
        """The payload as bytes that `from_bytes` reads without knowing anything else."""
        raw = self.values.detach().contiguous().view(RAW[self.values.dtype.itemsize])
        body = raw.cpu().numpy().tobytes() + self._places()
        code = DTYPES.index(self.values.dtype)
        return packed((self.kind, code, 0, self.numel, self.count, *self._key()), body)

    def _places(self) -> bytes:
        return b""

    def _key(self) -> tuple[int, int]:
        return (0, 0)


@dataclass(frozen=True, eq=False)
class Dense(Message):
    """Every element, in order."""

    kind = 0
    summable = True

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.add_(self.values, alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        residual.copy_(_left(residual, self.values))


@dataclass(frozen=True, eq=False)
class Sparse(Message):
    """Some elements with their indices: 4 bytes an index, 8 above 2^31 elements.

    Attributes:
        indices: int64 `[count]`, without repetition.
    """

    indices: Tensor
    kind = 1
    summable = False

    @property
    def nbytes(self) -> int:
        """See `Payload.nbytes`."""
        return super().nbytes + self.count * index_type(self.numel).itemsize

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.index_add_(0, self.indices, self.values.to(out.dtype), alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        indices = self.indices
        residual[indices] = _left(residual[indices], self.values)

    def _places(self) -> bytes:
        return self.indices.cpu().numpy().astype(index_type(self.numel)).tobytes()


@dataclass(frozen=True, eq=False)
class Masked(Message):
    """Elements at places that all workers draw from the same key: no index travels.

    Attributes:
        stream: the shared stream whose `subset(count, numel)` the places are.
        drawn: those places, where they were drawn already; they do not travel.
    """

    stream: Stream
    drawn: Tensor | None = field(default=None, repr=False)
    kind = 2
    summable = True

    @property
    def indices(self) -> Tensor:
        """Int64 `[count]`."""
        if self.drawn is not None:
            return self.drawn
        return self.stream.subset(self.count, self.numel, self.values.device)

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.index_add_(0, self.indices, self.values.to(out.dtype), alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        indices = self.indices
        residual[indices] = _left(residual[indices], self.values)

    def _key(self) -> tuple[int, int]:
        return self.stream.key


@dataclass(frozen=True, eq=False)
class Bundle:
    """The payloads of consecutive parts of one vector, sent together.

    Attributes:
        parts: in order.
    """

    parts: tuple[Payload, ...]
    kind = 3

    @property
    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.numel for part in self.parts)

    @property
    def count(self) -> int:
        """Elements sent in all parts."""
        return sum(part.count for part in self.parts)

    @property
    def nbytes(self) -> int:
        """A header and the bytes of all parts."""
        return HEADER.size + sum(part.nbytes for part in self.parts)

    def to_bytes(self) -> bytes:
        """A header that counts the parts, then the parts, each of which describes itself."""
        body = b"".join(part.to_bytes() for part in self.parts)
        return packed((self.kind, 0, 0, self.numel, len(self.parts), 0, 0), body)

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        views = torch.split(out, [part.numel for part in self.parts])
        for part, view in zip(self.parts, views, strict=True):
            part.add_to(view, weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        views = torch.split(residual, [part.numel for part in self.parts])
        for part, view in zip(self.parts, views, strict=True):
            part.remove_from(view)

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        return torch.cat([part.decode() for part in self.parts])


def _left(waiting: Tensor, sent: Tensor) -> Tensor:
    # a NaN was delivered like any other value: left in a residual, it would never go away
    return torch.where(sent.isfinite(), waiting - sent, 0).to(waiting.dtype)


def packed(head: tuple[int, ...], body: bytes) -> bytes:
    """A header with its checksum, and the body behind it."""
    checksum = zlib.crc32(body, zlib.crc32(HEADER.pack(MAGIC, VERSION, *head, 0)))
    return HEADER.pack(MAGIC, VERSION, *head, checksum) + body


def index_type(numel: int) -> np.dtype[np.signedinteger]:
    """The integers that count places: 4 bytes up to 2^31 elements, else 8."""
    return np.dtype(np.int32 if numel <= 1 << 31 else np.int64)


def sparse(flat: Tensor, indices: NDArray[np.int64] | Tensor) -> Sparse:
    """The payload of the elements of `flat` at `indices`."""
    places = torch.as_tensor(indices, device=flat.device)
    return Sparse(flat[places], flat.numel(), places)
