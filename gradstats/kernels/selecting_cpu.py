"""Selection in numba: one pass compacts what may be selected, and only that is ranked.

Magnitudes are compared as the integers of their bit patterns: finite < inf < NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import counting_cpu_loops
from gradstats.kernels import selecting_cpu_loops as loops
from gradstats.kernels.counting_cpu import CHUNK, _in_threads, _patterns
from gradstats.kernels.grid import INFINITY
from gradstats.kernels.selecting_cpu_loops import DIGIT

SAMPLE = 1 << 15
STRIDE = 17  # between the elements of a sample of a short vector
SHORT = 1 << 10  # elements of which no sample is taken
MOST_TIES = 16  # a value with this share of a sample, inverted: compacting would copy too much
FLOATS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}

Run = tuple[NDArray[np.int32], NDArray[Any]]
Selected = tuple[NDArray[np.int64], NDArray[Any]]


class Bounds(NamedTuple):
    """Magnitudes around the k-th, as patterns.

    Attributes:
        least: k elements are all but sure to reach it.
        sure: k elements are all but sure not to reach it.
    """

    least: int
    sure: int


@dataclass(frozen=True)
class Vector:
    """What is selected from.

    Attributes:
        patterns: `[n]`.
        dtype: of the values.
        terms: two vectors and where their sum goes, whose patterns those are once it is there;
            None where the values are there.
    """

    patterns: NDArray[Any]
    dtype: torch.dtype
    terms: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None

    @property
    def magnitude(self) -> Any:
        """The mask of a pattern without its sign."""
        return self.patterns.dtype.type(np.iinfo(self.patterns.dtype).max >> 1)

    @property
    def nan(self) -> Any:
        """The least pattern of a NaN, for which all of them stand."""
        return self.patterns.dtype.type(INFINITY[self.dtype] + 1)

    def sample(self) -> NDArray[Any]:
        """The magnitudes of some elements; an odd step meets every column of a matrix."""
        step = max(STRIDE, self.patterns.size // SAMPLE | 1)
        if self.terms is None:
            return self.patterns[::step] & self.magnitude
        first, second, _ = self.terms
        sums = first[::step] + second[::step]
        return sums.view(self.patterns.dtype) & self.magnitude

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


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`."""
    return _compacted(_vector(values), threshold)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`."""
    return _largest(_vector(values), k)


def compact_sum(
    first: Tensor, second: Tensor, total: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact_sum`."""
    return _compacted(_sum(first, second, total), threshold)


def largest_of_sum(first: Tensor, second: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest_of_sum`."""
    return _largest(_sum(first, second, total), k)


def subtract_at(residual: Tensor, indices: Tensor, sent: Tensor) -> None:
    """See `gradstats.kernels.subtract_at`."""
    done = loops.subtract_at(residual.numpy(), indices.numpy(), sent.numpy())
    if done < len(indices):
        rule = f"index must lie in [0, {len(residual)})"
        raise IndexError(f"{rule}, got {int(indices[done])}")


def _vector(values: Tensor) -> Vector:
    values = values.detach()
    return Vector(_patterns(values), values.dtype)


def _sum(first: Tensor, second: Tensor, total: Tensor) -> Vector:
    one, two = first.detach().numpy(), second.detach().numpy()
    out = one if total.data_ptr() == first.data_ptr() else total.numpy()
    return Vector(_patterns(total), total.dtype, (one, two, out))


def _compacted(vector: Vector, threshold: float) -> tuple[Tensor, Tensor]:
    limit = pattern_below(threshold, vector.dtype)
    return _as_tensors(_joined(_runs(vector, limit + 1), vector.patterns.dtype), vector)


def _largest(vector: Vector, k: int) -> tuple[Tensor, Tensor]:
    """Select by a sample, a pass and a ranking.

    A sample gives a magnitude that somewhat more than k elements reach, and one that somewhat
    fewer reach. The first are compacted in one pass, and those between the two ranked. Where the
    sample misled, or a value is so frequent that compacting would copy much of the vector, passes
    over 16 bits each find the k-th magnitude instead.
    """
    n = vector.patterns.size
    k, bounds = min(k, n), None
    every = Bounds(0, int(vector.nan)) if n <= SAMPLE else None
    if n > SHORT:
        bounds = _bounds(vector.sample(), k / n, int(vector.nan))
    bounds = bounds or every
    if bounds is None:
        vector.add()
        return _as_tensors(_by_digits(vector, k), vector)
    runs = _runs(vector, bounds.least)
    few = sum(len(places) for places, _ in runs.values()) < k
    selected = _by_digits(vector, k) if few else _ranked(runs, k, bounds.sure, vector)
    return _as_tensors(selected, vector)


def _as_tensors(selected: Selected, vector: Vector) -> tuple[Tensor, Tensor]:
    indices, patterns = selected
    signed = patterns.view(f"i{patterns.itemsize}")
    return torch.from_numpy(indices), torch.from_numpy(signed).view(vector.dtype)


def pattern_below(threshold: float, dtype: torch.dtype) -> int:
    """The pattern of `grid.round_down`."""
    if dtype == torch.bfloat16:  # the leading half of a float32
        return pattern_below(threshold, torch.float32) >> 16
    with np.errstate(over="ignore"):
        rounded = FLOATS[dtype](threshold)
    pattern = int(rounded.view(f"u{dtype.itemsize}"))
    return pattern - (float(rounded) > threshold)


def _bounds(sample: NDArray[Any], share: float, nan: int) -> Bounds | None:
    """Magnitudes around the k-th; None if there are none to be had."""
    expected = share * sample.size
    margin = 5 * math.sqrt(expected) + 5
    low, high = math.ceil(expected + margin), math.floor(expected - margin)
    if low >= sample.size:
        return None
    sample.partition(sample.size - low)
    top = sample[sample.size - low :]
    least = int(top[0])
    tied = int(np.count_nonzero(sample == top[0]))
    if not least or MOST_TIES * tied >= sample.size:
        return None
    if high < 1:
        return Bounds(least, nan)
    top.partition(low - high)
    return Bounds(least, min(int(top[low - high]), nan))


def _runs(vector: Vector, least: int) -> dict[int, Run]:
    """Indices, less those of their chunk, and patterns of what reaches a magnitude, by chunk."""
    n, dtype = vector.patterns.size, vector.patterns.dtype

    def work(chunks: Iterator[slice]) -> dict[int, Run]:
        places, kept = np.empty(min(n, CHUNK), np.int32), np.empty(min(n, CHUNK), dtype)
        runs = {}
        for chunk in chunks:
            count = vector.compact(chunk, dtype.type(least), places, kept)
            runs[chunk.start] = places[:count].copy(), kept[:count].copy()
        return runs

    runs: dict[int, Run] = reduce(or_, _in_threads(work, n), {})
    return {start: runs[start] for start in sorted(runs)}


def _joined(runs: dict[int, Run], dtype: np.dtype[Any]) -> Selected:
    """All that was compacted."""
    count = sum(len(places) for places, _ in runs.values())
    indices, values, filled = np.empty(count, np.int64), np.empty(count, dtype), 0
    for start, (places, kept) in runs.items():
        part = slice(filled, filled + len(places))
        np.add(places, np.int64(start), out=indices[part])
        values[part] = kept
        filled = part.stop
    return indices, values


def _ranked(runs: dict[int, Run], k: int, sure: int, vector: Vector) -> Selected:
    """The k largest magnitudes of what was compacted; of those that equal the k-th, the first."""
    dtype = vector.patterns.dtype
    if sum(len(places) for places, _ in runs.values()) == k:
        return _joined(runs, dtype)
    masks = vector.magnitude, vector.nan, _kth(runs, k, sure, vector)
    counts = [loops.count_ranks(kept, *masks) for _, kept in runs.values()]
    ties = k - sum(above for above, _ in counts)
    indices, values, filled = np.empty(k, np.int64), np.empty(k, dtype), 0
    for (start, run), (above, equal) in zip(runs.items(), counts, strict=True):
        taken = min(equal, ties)
        part = slice(filled, filled + above + taken)
        loops.write_largest(*run, masks, start, taken, indices[part], values[part])
        ties -= taken
        filled = part.stop
    return indices, values


def _kth(runs: dict[int, Run], k: int, sure: int, vector: Vector) -> Any:
    """The k-th largest magnitude of what was compacted."""
    magnitude, width, pieces, larger = vector.magnitude, vector.patterns.dtype.type, [], 0
    for _, kept in runs.values():
        piece = np.empty(len(kept) + 1, kept.dtype)
        count = loops.between(kept, magnitude, width(sure), piece)
        pieces.append(piece[:count])
        larger += len(kept) - count
    among, rank = np.concatenate(pieces), k - larger
    if not 0 < rank <= len(among):  # the sample misled
        every = np.concatenate([kept for _, kept in runs.values()])
        among, rank = np.minimum(every & magnitude, vector.nan), k
    among.partition(len(among) - rank)
    return among[len(among) - rank]


def _by_digits(vector: Vector, k: int) -> Selected:
    """The same for any values, in passes that count a digit of 16 bits each."""
    patterns, infinity = vector.patterns, int(vector.nan) - 1
    bits, vector = 8 * patterns.itemsize, replace(vector, terms=None)
    prefix, above, shift = 0, 0, bits
    while shift:
        shift -= DIGIT
        counts = _digit_counts(patterns, prefix, shift)
        if prefix == 0 and shift == bits - DIGIT and counts[infinity >> shift :].sum() >= k:
            return _ranked(_runs(vector, infinity), k, infinity + 1, vector)
        from_top = counts[::-1].cumsum()
        digit = len(counts) - 1 - int(np.searchsorted(from_top, k - above))
        above += int(counts[digit + 1 :].sum())
        prefix = prefix << DIGIT | digit
    indices, larger = _joined(_runs(vector, prefix + 1), patterns.dtype)
    equal = np.empty(k - above, np.int64)
    loops.first_equal(patterns, patterns.dtype.type(prefix), equal)
    indices = np.concatenate([indices, equal])
    order = indices.argsort()
    return indices[order], np.concatenate([larger, patterns[equal]])[order]


def _digit_counts(patterns: NDArray[Any], prefix: int, shift: int) -> NDArray[np.int64]:
    """How many magnitudes that begin with a prefix have each next digit."""
    width = patterns.dtype.type
    top = shift == 8 * patterns.itemsize - DIGIT
    heads = patterns.view(np.uint16)[patterns.itemsize // 2 - 1 :: patterns.itemsize // 2]

    def work(chunks: Iterator[slice]) -> NDArray[np.int32]:
        counts = np.zeros((2, 1 << DIGIT), np.int32)
        for chunk in chunks:
            if top:
                counting_cpu_loops.count_heads(heads[chunk], np.uint16(0), counts)
            else:
                loops.count_digits(patterns[chunk], width(prefix), width(shift), counts[0])
        return counts

    counts = np.asarray(sum(each.sum(0, dtype=np.int64) for each in _in_threads(work, len(heads))))
    if top:  # either sign
        counts = counts.reshape(2, -1).sum(0)
    return counts
