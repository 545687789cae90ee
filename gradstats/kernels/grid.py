"""The log grid of a floating-point dtype: which values share a bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


INFINITY = {  # bit patterns
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF0000000000000,
}


class Tally(NamedTuple):
    """What one pass over a vector counts.

    `counts[i]` elements have the leading bits `keys[i]`: the sign, then the magnitude bin; keys
    rise, and no count is zero. Zeros and non-finite elements are among them; the sums and
    `max_abs` run over finite elements alone.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    positive_zeros: int
    negative_zeros: int
    nan: int
    positive_inf: int
    negative_inf: int
    total: float
    total_abs: float
    total_sq: float
    max_abs: float


@dataclass(frozen=True)
class Grid:
    """Bins of magnitudes that agree in sign, exponent and the leading mantissa bits.

    A bin `b` holds the magnitudes whose bit pattern shifted right by `shift` is `b`, so that every
    edge is a value of the dtype: relative width 1/128 for float32, float64 and float16, and a
    single value for bfloat16.
    """

    name: str
    dtype: torch.dtype
    shift: int

    @property
    def bits(self) -> int:
        """Width of the dtype in bits."""
        return 8 * self.dtype.itemsize

    @property
    def bins(self) -> int:
        """Number of magnitude bins, those of infinity and NaN included."""
        return 1 << (self.bits - 1 - self.shift)

    @property
    def first_nonfinite(self) -> int:
        """The bin of infinity; NaNs lie in it and above."""
        return INFINITY[self.dtype] >> self.shift

    def edges(self, bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest magnitude of each bin, both inclusive: `[m]`, `[m]`."""
        low = bins.astype(np.int64) << self.shift
        return self._values(low), self._values(low | ((1 << self.shift) - 1))

    def _values(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
        integers = torch.from_numpy(patterns).to(INTEGERS[self.dtype.itemsize])
        return np.asarray(integers.view(self.dtype).to(torch.float64).numpy())


def _pattern(values: Tensor) -> Tensor:
    return values.view(INTEGERS[values.dtype.itemsize])


GRIDS = {
    dtype: Grid(str(dtype).removeprefix("torch."), dtype, shift)
    for dtype, shift in (
        (torch.float32, 16),
        (torch.float64, 45),
        (torch.float16, 3),
        (torch.bfloat16, 0),
    )
}


def round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of `dtype` not above a threshold >= 0.

    No value of the dtype lies between the two, so both cut it alike. Rounding to nearest would
    drop a whole point mass of a bfloat16 gradient, and turn a threshold above the dtype's range
    into one that an infinite element does not exceed.
    """
    rounded = torch.tensor([threshold], dtype=torch.float64, device="cpu").to(dtype)
    if rounded.item() > threshold:
        rounded = (_pattern(rounded) - 1).view(dtype)
    return float(rounded.item())


def sparse(table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The keys of a table of counts that are not zero, and their counts."""
    keys = np.flatnonzero(table)
    return keys, table[keys]


def tally_16_bit(patterns: NDArray[np.int64], dtype: torch.dtype) -> Tally:
    """The tally of a 16-bit dtype from the counts of its 65,536 values; every sum is exact."""
    grid = GRIDS[dtype]
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    values64 = values.to(torch.float64).numpy()
    finite = np.isfinite(values64) & (patterns > 0)
    counts, present = patterns[finite].astype(np.float64), values64[finite]
    keys, occupied = sparse(patterns.reshape(-1, 1 << grid.shift).sum(axis=1))
    return Tally(
        keys=keys,
        counts=occupied,
        positive_zeros=int(patterns[0]),
        negative_zeros=int(patterns[1 << 15]),
        nan=int(patterns[np.isnan(values64)].sum()),
        positive_inf=int(patterns[values64 == np.inf].sum()),
        negative_inf=int(patterns[values64 == -np.inf].sum()),
        total=float(counts @ present),
        total_abs=float(counts @ np.abs(present)),
        total_sq=float(counts @ present**2),
        max_abs=float(np.abs(present).max(initial=0.0)),
    )
