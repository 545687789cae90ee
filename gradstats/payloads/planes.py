"""Numbers as byte planes, each entropy coded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gradstats.payloads import entropy
from gradstats.payloads.base import Payload
from gradstats.payloads.wire import Reader, Section, blob, code_of, refused, varint


@dataclass(frozen=True, eq=False, repr=False)
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
        payload = cls(bytes(reader.blob()), numel, dtype)
        if reader.checks(numel):
            payload.decode()
        return payload
