"""A Count-Sketch as it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from gradstats.kernels.philox import philox
from gradstats.kernels.ranges import from_unit, in_range
from gradstats.payloads.base import Payload
from gradstats.payloads.wire import PayloadError, Reader, Section, code_of, varint

ESTIMATES = ("median", "mean")
MOST_ROWS = 64
CHUNK = 1 << 16  # elements whose estimates, one a row, are in memory at once


@dataclass(frozen=True, eq=False, repr=False)
class Sketch(Payload):
    """A table of sums, from which every element can be estimated.

    Attributes:
        table: `[R, C]`.
        numel: d.
        key: of the hashes.
        estimate: one of `ESTIMATES`, over the rows.
    """

    table: Tensor
    numel: int
    key: tuple[int, int]
    estimate: str
    kind = 8

    @property
    def count(self) -> int:
        """Every element is covered."""
        return self.numel

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        places = torch.arange(self.numel, device=self.table.device)
        table, unit = self._in_range
        parts = [self._estimates(table, part) for part in torch.split(places, CHUNK)]
        return from_unit(torch.cat(parts), unit)

    @cached_property
    def _in_range(self) -> tuple[Tensor, float]:
        """The table and its unit, which the host reads from the device."""
        return in_range(self.table)

    def _estimates(self, table: Tensor, places: Tensor) -> Tensor:
        each = enumerate(hashes(self.key, table.shape, places))
        rows = torch.stack([table[row, bucket] * sign for row, (bucket, sign) in each])
        return rows.median(0).values if self.estimate == "median" else rows.mean(0)

    def sections(self) -> Iterator[Section]:
        """Dtype, number, key, estimate, R, C, table."""
        yield code_of(self.table.dtype)
        yield varint(self.numel)
        for number in (*self.key, ESTIMATES.index(self.estimate), *self.table.shape):
            yield varint(number)
        yield self.table

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        dtype, numel, key = reader.float_dtype(), reader.numel(), reader.key()
        estimate = ESTIMATES[reader.number(len(ESTIMATES) - 1, "estimate")]
        rows = reader.number(MOST_ROWS, "rows")
        columns = reader.number(max(reader.max_numel, 1), "columns")
        if not rows or not columns:
            raise PayloadError(f"a sketch must have rows and columns, got {rows} and {columns}")
        return cls(reader.tensor(rows * columns, dtype).view(rows, columns), numel, key, estimate)


def hashes(
    key: tuple[int, int], shape: tuple[int, ...], places: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return, for each row, the bucket and the sign of the elements at these indices."""
    rows, columns = shape
    for pair in range(-(-rows // 2)):
        words = philox((key[0], key[1] ^ pair), places)
        for bucket, sign in ((words[0], words[1]), (words[2], words[3]))[: rows - 2 * pair]:
            yield bucket % columns, 1 - 2 * (sign & 1)
