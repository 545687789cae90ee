from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gradstats.compressors import entropy
from gradstats.compressors.base import Bound, Compressor, Contract, State
from gradstats.compressors.payloads import Payload
from gradstats.compressors.rng import Rng
from gradstats.compressors.wire import Reader, Section, blob, code_of, raw, refused, varint


@dataclass(frozen=True, eq=False)
class Planes(Payload):
    """Every element exactly: the bytes of its values sorted by significance, compressed.

    Attributes:
        data: by `entropy.compress_bytes`.
        numel: number of elements.
        dtype: of the values.
        place: the device that they are decoded to; it does not travel.
    """

    data: bytes
    numel: int
    dtype: torch.dtype
    place: torch.device = torch.device("cpu")
    kind = 6

    @property
    def count(self) -> int:
        """All elements."""
        return self.numel

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        width = self.dtype.itemsize
        with refused():
            planes = entropy.decompress_bytes(self.data, self.numel * width)
        values = entropy.from_byte_planes(planes, width)
        if not self.numel:
            return torch.zeros(0, dtype=self.dtype, device=self.place)
        return torch.frombuffer(bytearray(values), dtype=self.dtype).to(self.place)

    def sections(self) -> Iterator[Section]:
        """Dtype, number, data."""
        yield code_of(self.dtype)
        yield varint(self.numel)
        yield from blob(self.data)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        dtype, numel = reader.float_dtype(), reader.numel()
        found = cls(bytes(reader.blob()), numel, dtype)
        if reader.checks(numel):
            found.decode()
        return found


@dataclass(frozen=True)
class Lossless(Compressor):
    """Every element exactly: bytes of equal significance lie together, and zstd compresses them.

    Signs and exponents of a gradient repeat, mantissas hardly do: about one byte in four is saved.

    Args:
        level: of zstd, 1 to 22.
    """

    level: int = 3
    name = "lossless"
    contract = Contract("all_gather", delta=Bound("1", lambda payload: 1.0), unbiased=True)

    def __post_init__(self) -> None:
        if not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise ValueError(f"level must be a whole number from 1 to 22, got {self.level!r}")

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Planes, State]:
        """The bytes, by plane, compressed."""
        planes = entropy.byte_planes(raw(grad.reshape(-1)), grad.dtype.itemsize)
        data = entropy.compress_bytes(planes, self.level)
        return Planes(data, grad.numel(), grad.dtype, grad.device), state
