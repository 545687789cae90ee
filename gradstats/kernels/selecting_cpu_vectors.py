"""What the selection in numba selects from: bit patterns of a vector, or of a sum of two."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import selecting_cpu_loops as loops
from gradstats.kernels.grid import INFINITY

SAMPLE = 1 << 15
Selected = tuple[NDArray[np.int64], NDArray[Any]]
PATTERNS: dict[int, np.dtype[Any]] = {size: np.dtype(f"u{size}") for size in (2, 4, 8)}
FLOATS: dict[torch.dtype, type[np.floating]] = {
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def _masks(dtype: torch.dtype) -> tuple[Any, Any]:
    """The mask of a pattern without its sign, and the least pattern of a NaN, for all of them."""
    width = PATTERNS[dtype.itemsize].type
    return width(np.iinfo(width).max >> 1), width(INFINITY[dtype] + 1)


MASKS = {dtype: _masks(dtype) for dtype in INFINITY}


class Vector(NamedTuple):
    """What is selected from.

    Attributes:
        patterns: `[n]`.
        dtype: of the values.
        magnitude: mask of a pattern without its sign.
        nan: the least pattern of a NaN, for which all of them stand.
        terms: two vectors and where their sum goes, whose patterns those are once it is there;
            None where the values are there.
    """

    patterns: NDArray[Any]
    dtype: torch.dtype
    magnitude: Any
    nan: Any
    terms: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None

    def sample(self) -> NDArray[Any]:
        """The magnitudes of some elements; an odd step meets every column of a matrix."""
        patterns, step = self.patterns, self.patterns.size // SAMPLE | 1
        if self.terms is None:
            sample = patterns[::step] & self.magnitude
        else:
            first, second, _ = self.terms
            sample = (first[::step] + second[::step]).view(patterns.dtype) & self.magnitude
        return np.asarray(sample)

    def compact(
        self, chunk: slice, least: Any, places: NDArray[np.int32], kept: NDArray[Any]
    ) -> int:
        """See `selecting_cpu_loops.compact`; where there is a sum, the chunk's is written."""
        patterns, magnitude = self.patterns[chunk], self.magnitude
        if self.terms is None:
            return int(loops.compact(patterns, magnitude, least, 0, places, kept, 0))
        first, second, total = (each[chunk] for each in self.terms)
        terms, in_place = (first, second, total), self.terms[0] is self.terms[2]
        return int(
            loops.add_and_compact(terms, in_place, patterns, magnitude, least, places, kept)
        )

    def add(self) -> None:
        """Write the sum, where there is one."""
        if self.terms is not None:
            first, second, total = self.terms
            np.add(first, second, out=total)


def vector_of(values: Tensor) -> Vector:
    """A vector whose values are there."""
    values, dtype = values.detach(), values.dtype
    if dtype == torch.bfloat16:  # which numpy does not have
        values = values.view(torch.int16)
    return Vector(values.numpy().view(PATTERNS[dtype.itemsize]), dtype, *MASKS[dtype])


def sum_of(first: Tensor, second: Tensor, total: Tensor) -> Vector:
    """The sum of two vectors, which is still to be written."""
    one, two = first.detach().numpy(), second.detach().numpy()
    out = one if total.data_ptr() == first.data_ptr() else total.numpy()
    return vector_of(total)._replace(terms=(one, two, out))


def as_tensors(selected: Selected, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Indices, and patterns as values of a dtype."""
    indices, patterns = selected
    if dtype == torch.bfloat16:
        return torch.from_numpy(indices), torch.from_numpy(patterns.view(np.int16)).view(dtype)
    return torch.from_numpy(indices), torch.from_numpy(patterns.view(FLOATS[dtype]))


def pattern_below(threshold: float, dtype: torch.dtype) -> int:
    """The pattern of `grid.round_down`."""
    if dtype == torch.bfloat16:  # the leading half of a float32
        return pattern_below(threshold, torch.float32) >> 16
    if threshold > torch.finfo(dtype).max:
        return INFINITY[dtype] - (threshold != math.inf)
    rounded: Any = FLOATS[dtype](threshold)
    return int(rounded.view(PATTERNS[dtype.itemsize])) - (float(rounded) > threshold)
