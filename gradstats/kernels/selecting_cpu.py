"""Selection in numba: one pass that skips blocks, compacts the rest, and ranks what is left.

Magnitudes are compared as the integers of their bit patterns: finite < inf < NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import counting_cpu_loops as loops
from gradstats.kernels.counting_cpu import CHUNK, _in_threads, _patterns
from gradstats.kernels.counting_cpu_loops import jit
from gradstats.kernels.grid import INFINITY, round_down

SKIP = 64  # elements that are passed over together
SAMPLE = 1 << 15
DIGIT = 16  # bits of a magnitude that one pass counts
MOST_TIES = SAMPLE // 16  # of one value in a sample, with which compacting would copy too much

Found = tuple[NDArray[np.int64], NDArray[Any]]


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`."""
    limit = torch.tensor([round_down(threshold, values.dtype)], dtype=values.dtype)
    indices, kept = _above(_patterns(values.detach()), int(_patterns(limit)[0]))
    return torch.from_numpy(indices), _values(kept, values.dtype)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`.

    A sample gives a magnitude that somewhat more than k elements reach; they are compacted in one
    pass, and ranked. Where the sample misled, or a value is so frequent that compacting would copy
    much of the vector, passes over 16 bits each find the k-th magnitude instead.
    """
    patterns = _patterns(values.detach())
    k = min(k, patterns.size)
    infinity = patterns.dtype.type(INFINITY[values.dtype])
    guess = _guess(patterns, k)
    candidates = None if guess is None else _above(patterns, guess - 1)
    if candidates is None or candidates[0].size < k:
        candidates = _by_digits(patterns, k, infinity)
    indices, bits = _ranked(*candidates, k, infinity)
    return torch.from_numpy(indices), _values(bits, values.dtype)


def _values(patterns: NDArray[Any], dtype: torch.dtype) -> Tensor:
    signed = patterns.view(f"i{patterns.itemsize}")
    return torch.from_numpy(signed).view(dtype)


def _above(patterns: NDArray[Any], limit: int) -> Found:
    """Indices and patterns of the elements whose magnitude is above a pattern, -1 for all."""
    width = patterns.dtype.type
    magnitude, least = width(np.iinfo(width).max >> 1), width(limit + 1)

    def work(chunks: Iterator[slice]) -> dict[int, Found]:
        places, kept = np.empty(CHUNK + 1, np.int32), np.empty(CHUNK + 1, patterns.dtype)
        runs = {}
        for chunk in chunks:
            count = _compact(patterns[chunk], magnitude, least, places, kept)
            runs[chunk.start] = places[:count] + np.int64(chunk.start), kept[:count].copy()
        return runs

    runs: dict[int, Found] = reduce(or_, _in_threads(work, patterns.size), {})
    if not runs:
        return np.zeros(0, np.int64), patterns[:0].copy()
    places, kept = zip(*(runs[start] for start in sorted(runs)), strict=True)
    return np.concatenate(places), np.concatenate(kept)


def _guess(patterns: NDArray[Any], k: int) -> int | None:
    """A magnitude that k elements are all but sure to reach; None if there is none to be had."""
    n = patterns.size
    if n <= SAMPLE:
        return 0
    # an odd step meets every column of a matrix
    sample = patterns[:: n // SAMPLE | 1] & (np.iinfo(patterns.dtype).max >> 1)
    share = k / n * sample.size
    rank = math.ceil(share + 5 * math.sqrt(share) + 5)
    if rank >= sample.size:
        return None
    guess = int(np.partition(sample, sample.size - rank)[sample.size - rank])
    tied = int((sample == guess).sum())
    return guess if guess and tied < MOST_TIES else None


def _by_digits(patterns: NDArray[Any], k: int, infinity: Any) -> Found:
    """The elements above the k-th largest magnitude, and as many of those equal as are needed."""
    bits = 8 * patterns.itemsize
    prefix, above, shift = 0, 0, bits
    while shift:
        shift -= DIGIT
        counts = _digit_counts(patterns, prefix, shift)
        if prefix == 0 and shift == bits - DIGIT and counts[infinity >> shift :].sum() >= k:
            return _nonfinite(patterns, infinity)
        from_top = counts[::-1].cumsum()
        digit = len(counts) - 1 - int(np.searchsorted(from_top, k - above))
        above += int(counts[digit + 1 :].sum())
        prefix = prefix << DIGIT | digit
    indices, larger = _above(patterns, prefix)
    equal = np.empty(k - above, np.int64)
    _first_equal(patterns, patterns.dtype.type(prefix), equal)
    indices = np.concatenate([indices, equal])
    order = indices.argsort()
    return indices[order], np.concatenate([larger, patterns[equal]])[order]


def _nonfinite(patterns: NDArray[Any], infinity: Any) -> Found:
    return _above(patterns, int(infinity) - 1)


def _digit_counts(patterns: NDArray[Any], prefix: int, shift: int) -> NDArray[np.int64]:
    """How many magnitudes that begin with a prefix have each next digit."""
    width = patterns.dtype.type
    top = shift == 8 * patterns.itemsize - DIGIT
    heads = patterns.view(np.uint16)[patterns.itemsize // 2 - 1 :: patterns.itemsize // 2]

    def work(chunks: Iterator[slice]) -> NDArray[np.int32]:
        counts = np.zeros((2, 1 << DIGIT), np.int32)
        for chunk in chunks:
            if top:
                loops.count_heads(heads[chunk], np.uint16(0), counts)
            else:
                _count_digits(patterns[chunk], width(prefix), width(shift), counts[0])
        return counts

    counts = np.asarray(sum(each.sum(0, dtype=np.int64) for each in _in_threads(work, len(heads))))
    if top:  # either sign
        counts = counts.reshape(2, -1).sum(0)
    return counts


def _ranked(indices: NDArray[np.int64], patterns: NDArray[Any], k: int, infinity: Any) -> Found:
    """The k largest magnitudes of some; of those that equal the k-th, the first."""
    if indices.size == k:
        return indices, patterns
    # all NaN are equal
    magnitudes = np.minimum(patterns & (np.iinfo(patterns.dtype).max >> 1), infinity + 1)
    kth = np.partition(magnitudes, indices.size - k)[indices.size - k]
    chosen = magnitudes > kth
    equal = np.flatnonzero(magnitudes == kth)
    chosen[equal[: k - int(chosen.sum())]] = True
    return indices[chosen], patterns[chosen]


@jit
def _compact(
    patterns: NDArray[Any],
    magnitude: int,
    least: int,
    places: NDArray[np.int32],
    kept: NDArray[Any],
) -> int:
    """Write places and patterns of the magnitudes from `least` on; their number."""
    width = patterns.dtype.type
    count = 0
    for start in range(0, patterns.size, SKIP):
        part = patterns[start : start + SKIP]
        top = width(0)
        for i in range(part.size):
            top = max(top, width(part[i] & magnitude))
        if top < least:
            continue
        for i in range(part.size):
            places[count] = start + i
            kept[count] = part[i]
            count += width(part[i] & magnitude) >= least
    return count


@jit
def _count_digits(
    patterns: NDArray[Any], prefix: int, shift: int, counts: NDArray[np.int32]
) -> None:
    width = patterns.dtype.type
    digit = width((1 << DIGIT) - 1)
    without_sign = width(prefix)
    for i in range(patterns.size):
        bits = width(patterns[i] << width(1)) >> width(1)
        if width(bits >> width(shift + DIGIT)) == without_sign:
            counts[width(bits >> shift) & digit] += 1


@jit
def _first_equal(patterns: NDArray[Any], magnitude: int, out: NDArray[np.int64]) -> None:
    """Places of the first elements of one magnitude, as many as `out` holds."""
    width = patterns.dtype.type
    count = 0
    for i in range(patterns.size):
        if count == out.size:
            return
        if width(patterns[i] << width(1)) >> width(1) == magnitude:
            out[count] = i
            count += 1
