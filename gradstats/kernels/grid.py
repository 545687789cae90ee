"""The log grid of a floating-point dtype: which values share a bin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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
MANTISSA = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}  # bits


class Tally(NamedTuple):
    """The counts and sums of one pass over a vector.

    `positive[i]` and `negative[i]` elements lie in the magnitude bin `bins[i]`; bins rise, and
    none is empty. These, the sums and `max_abs` run over finite elements alone, and zeros are
    counted apart.
    """

    bins: NDArray[np.integer]
    positive: NDArray[np.integer]
    negative: NDArray[np.integer]
    positive_zeros: int
    negative_zeros: int
    nan: int
    positive_inf: int
    negative_inf: int
    total: float
    total_abs: float
    total_sq: float
    max_abs: float


class Magnitudes(NamedTuple):
    """The sums of the magnitudes of a vector whose elements are all finite.

    Attributes:
        nonzero: number of elements that are not 0.
        total: sum of the magnitudes, that of a `Tally`.
    """

    nonzero: int
    total: float


@dataclass(frozen=True)
class Grid:
    """Bins of magnitudes whose bit patterns agree but for the last `shift` bits.

    The 16-bit dtypes have one bin per value. float32 and float64 have cells of relative width
    1/128 (7 mantissa bits, those of bfloat16), and two bins per cell: the even one holds the
    magnitude at the cell's lower end alone, whose last bits are all zero, and the odd one the rest
    of the cell. Values that were once bfloat16 lie in even bins, and are known exactly.

    Attributes:
        name: of the dtype.
        dtype: of the values.
        shift: number of last bits of a pattern that a cell ignores.
        kinds: bins per cell, 1 or 2.
    """

    name: str
    dtype: torch.dtype
    shift: int
    kinds: int

    @property
    def bits(self) -> int:
        """Width of the dtype in bits."""
        return 8 * self.dtype.itemsize

    @property
    def cells(self) -> int:
        """Number of cells, those of infinity and NaN included."""
        return 1 << (self.bits - 1 - self.shift)

    @property
    def bins(self) -> int:
        """Number of magnitude bins, those of infinity and NaN included."""
        return self.kinds * self.cells

    @property
    def octave(self) -> int:
        """Bins per factor of two, among the normal numbers."""
        return self.kinds << (MANTISSA[self.dtype] - self.shift)

    @property
    def first_nonfinite(self) -> int:
        """The bin of infinity; NaNs lie in it and above."""
        return self.kinds * (INFINITY[self.dtype] >> self.shift)

    def keys(self, values: Tensor) -> Tensor:
        """Sign and bin of each value, int64 of its shape: negative ones come after `bins`."""
        patterns = _pattern(values).to(torch.int64)
        cells = (patterns >> self.shift) & (2 * self.cells - 1)
        if self.kinds == 1:
            return cells
        return 2 * cells + ((patterns & ((1 << self.shift) - 1)) != 0)

    def edges(self, bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest magnitude of each bin, both inclusive: `[m]`, `[m]`."""
        if self.bits < 64:
            lows, highs = _edges(self)
            return lows[bins], highs[bins]
        return self._edges_of(bins.astype(np.int64))

    def _edges_of(
        self, bins: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        cell, kind = np.divmod(bins, self.kinds)
        low, rest = cell << self.shift, (1 << self.shift) - 1
        if self.kinds == 1:
            return self._values(low), self._values(low | rest)
        return self._values(low | kind), self._values(low | kind * rest)

    def _values(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
        integers = torch.from_numpy(patterns).to(INTEGERS[self.dtype.itemsize])
        return np.asarray(integers.view(self.dtype).to(torch.float64).numpy())


@cache
def _edges(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edges of all bins of a grid, 1 MB at most."""
    return grid._edges_of(np.arange(grid.bins))


def _pattern(values: Tensor) -> Tensor:
    return values.view(INTEGERS[values.dtype.itemsize])


def _grids(shifts: dict[torch.dtype, int], kinds: int) -> dict[torch.dtype, Grid]:
    return {
        dtype: Grid(str(dtype).removeprefix("torch."), dtype, shift, kinds if shift else 1)
        for dtype, shift in shifts.items()
    }


GRIDS = _grids({torch.float32: 16, torch.float64: 45, torch.float16: 0, torch.bfloat16: 0}, 2)
# those of Summaries that were stored before: whole cells, and eight values of float16 in each
GRIDS_1 = _grids({torch.float32: 16, torch.float64: 45, torch.float16: 3, torch.bfloat16: 0}, 1)


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


def rows(
    keys: NDArray[np.int64], counts: NDArray[np.int64], grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Bins that hold a finite element, and the elements of either sign in each.

    Args:
        keys: `[m]`, sign and bin, rising; they may repeat.
        counts: `[m]`, elements of each key, zeros not among them.
        grid: of the bins.
    """
    if 8 * len(keys) > grid.bins:
        return _rows_of_many(keys, counts, grid)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    keys, counts = keys[first], np.add.reduceat(counts, first)
    finite = (counts > 0) & (keys & (grid.bins - 1) < grid.first_nonfinite)
    keys, counts = keys[finite], counts[finite]
    negatives = int(np.searchsorted(keys, grid.bins))
    of_key = keys & (grid.bins - 1)
    bins = np.sort(of_key, kind="stable")  # which merges the two signs: each rises by itself
    bins = bins[np.diff(bins, prepend=-1) > 0]
    signed = np.zeros((2, len(bins)), np.int64)
    for row, side in zip(signed, (slice(negatives), slice(negatives, None)), strict=True):
        row[np.searchsorted(bins, of_key[side])] = counts[side]
    return bins, signed[0], signed[1]


def _rows_of_many(
    keys: NDArray[np.int64], counts: NDArray[np.int64], grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """As `rows`, by way of a table of all bins: searching among many keys takes longer."""
    table = np.bincount(keys, counts, 2 * grid.bins).astype(np.int64)  # exact below 2⁵³
    positive, negative = table.reshape(2, -1)[:, : grid.first_nonfinite]
    bins = np.flatnonzero(positive | negative)
    return bins, positive[bins], negative[bins]


@cache
def values_16_bit(dtype: torch.dtype) -> NDArray[np.float64]:
    """The 65,536 values of a 16-bit dtype in the order of their patterns."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    return np.asarray(patterns.view(dtype).to(torch.float64).numpy())


def sums_16_bit(
    values: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Sums of x, |x| and x² over values that occur `counts` times; every product is exact."""
    # not by BLAS: its threads would go on spinning for some 25 ms, on the cores of what follows
    of_values = counts * values
    return (
        float(of_values.sum()),
        float(np.abs(of_values).sum()),
        float((of_values * values).sum()),
    )


def tally_16_bit(
    patterns: NDArray[np.int64], counts: NDArray[np.int64], dtype: torch.dtype
) -> Tally:
    """The tally of a 16-bit dtype from the patterns there are, rising, and their counts."""
    grid, values = GRIDS[dtype], values_16_bit(dtype)[patterns]
    finite = np.isfinite(values)
    total, total_abs, total_sq = sums_16_bit(values[finite], counts[finite].astype(np.float64))
    return Tally(
        *rows(patterns, np.where(values == 0, 0, counts), grid),
        positive_zeros=int(counts[patterns == 0].sum()),
        negative_zeros=int(counts[patterns == 1 << 15].sum()),
        nan=int(counts[np.isnan(values)].sum()),
        positive_inf=int(counts[values == np.inf].sum()),
        negative_inf=int(counts[values == -np.inf].sum()),
        total=total,
        total_abs=total_abs,
        total_sq=total_sq,
        max_abs=float(np.abs(values[finite]).max(initial=0.0)),
    )
