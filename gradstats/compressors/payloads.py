"""What is sent: self-describing payloads whose `nbytes` is the length of their bytes."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
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
        head = (MAGIC, VERSION, self.kind, code, 0, self.numel, self.count, *self._key())
        checksum = zlib.crc32(body, zlib.crc32(HEADER.pack(*head, 0)))
        return HEADER.pack(*head, checksum) + body

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
        return super().nbytes + self.count * _index_type(self.numel).itemsize

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.index_add_(0, self.indices, self.values.to(out.dtype), alpha=weight)

    def _places(self) -> bytes:
        return self.indices.cpu().numpy().astype(_index_type(self.numel)).tobytes()


@dataclass(frozen=True, eq=False)
class Masked(Message):
    """Elements at places that all workers draw from the same key: no index travels.

    Attributes:
        stream: the shared stream whose `subset(count, numel)` the places are.
    """

    stream: Stream
    kind = 2
    summable = True

    @property
    def indices(self) -> Tensor:
        """Int64 `[count]`."""
        return self.stream.subset(self.count, self.numel, self.values.device)

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.index_add_(0, self.indices, self.values.to(out.dtype), alpha=weight)

    def _key(self) -> tuple[int, int]:
        return self.stream.key


def from_bytes(data: bytes, *, max_numel: int = 1 << 31) -> Message:
    """Read a payload from its bytes alone.

    Args:
        data: what `to_bytes` gave.
        max_numel: refuse payloads that claim a longer gradient, before anything is allocated.

    Raises:
        PayloadError: truncated, corrupted, of a newer version, or inconsistent.
    """
    if len(data) < HEADER.size:
        raise PayloadError(f"cannot decode payload: {len(data)} bytes, header has {HEADER.size}")
    magic, version, kind, code, _, numel, count, k0, k1, checksum = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise PayloadError(
            f"payload must start with {MAGIC!r} version {VERSION}, got {data[:5]!r}"
        )
    body = data[HEADER.size :]
    if zlib.crc32(body, zlib.crc32(data[: HEADER.size - 4] + bytes(4))) != checksum:
        raise PayloadError(f"cannot decode payload: checksum is not {checksum:#010x}")
    if kind > 2 or code >= len(DTYPES) or count > numel or numel > max_numel:
        raise PayloadError(
            f"cannot decode payload: kind {kind}, dtype {code}, {count} of {numel} elements "
            f"(at most {max_numel})"
        )
    dtype = DTYPES[code]
    index_bytes = count * _index_type(numel).itemsize if kind == Sparse.kind else 0
    split = count * dtype.itemsize
    if len(body) != split + index_bytes or (kind == Dense.kind and count != numel):
        raise PayloadError(f"cannot decode payload: {len(body)} bytes for {count} elements")
    raw = np.frombuffer(body[:split], f"i{dtype.itemsize}").copy()
    values = torch.from_numpy(raw).view(dtype)
    if kind == Dense.kind:
        return Dense(values, numel)
    if kind == Masked.kind:
        return Masked(values, numel, Stream((k0, k1)))
    return Sparse(values, numel, _read_indices(body[split:], numel))


def _read_indices(places: bytes, numel: int) -> Tensor:
    indices = np.frombuffer(places, _index_type(numel)).astype(np.int64)
    if indices.size and not (0 <= indices.min() and indices.max() < numel):
        raise PayloadError(
            f"index must lie in [0, {numel}), got {indices.min()} … {indices.max()}"
        )
    if np.unique(indices).size != indices.size:
        raise PayloadError(f"indices must differ, got {indices.size} with repetitions")
    return torch.from_numpy(indices)


def _index_type(numel: int) -> np.dtype[np.signedinteger]:
    return np.dtype(np.int32 if numel <= 1 << 31 else np.int64)


def sparse(flat: Tensor, indices: NDArray[np.int64] | Tensor) -> Sparse:
    """The payload of the elements of `flat` at `indices`."""
    places = torch.as_tensor(indices, device=flat.device)
    return Sparse(flat[places], flat.numel(), places)
