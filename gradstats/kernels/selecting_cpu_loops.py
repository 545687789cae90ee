"""Loops of selecting in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit

LANES = 64  # elements whose comparisons are the bits of one integer
STRETCH = 1 << 12  # elements that are added and looked at while they are in the first-level cache
STRIDE = 17  # between the elements of a sample of a short vector
SHORT = 1 << 10  # elements of which no sample is taken
LEADING = 11  # bits of a magnitude that are counted to rank a few
SIGMAS = 5.0  # by which more of a sample are taken than their share
SEQUENCE = np.uint64(0x03F79D71B4CB0A89)  # of de Bruijn: its 64 windows of 6 bits are distinct


def _bit_numbers() -> NDArray[np.int32]:
    numbers = np.zeros(LANES, np.int32)
    for bit in range(LANES):
        numbers[(int(SEQUENCE) << bit & (1 << 64) - 1) >> 58] = bit
    return numbers


BIT_NUMBERS = _bit_numbers()


@jit
def lowest_bit(bits: Any) -> Any:
    """The number of the lowest bit that is set."""
    low = bits & (~bits + np.uint64(1))
    return BIT_NUMBERS[(low * SEQUENCE) >> np.uint64(58)]


@jit
def reached_by(part: NDArray[Any], magnitude: int, least: int) -> Any:
    """A bit per element of 64: whether its magnitude is `least` or more."""
    width = part.dtype.type
    bits = np.uint64(0)
    for i in range(LANES):
        bits |= np.uint64(width(part[i] & magnitude) >= least) << np.uint64(i)
    return bits


@jit
def compact(
    patterns: NDArray[Any],
    magnitude: int,
    least: int,
    start: int,
    places: NDArray[np.int32],
    kept: NDArray[Any],
    count: int,
) -> int:
    """Append index and pattern of the magnitudes from `least` on; return how many there are.

    Args:
        patterns: `[n]`.
        magnitude: mask of a pattern without its sign.
        least: pattern.
        start: index of the first element.
        places: room for the indices.
        kept: room for the patterns.
        count: entries that both hold already.
    """
    width = patterns.dtype.type
    whole = patterns.size // LANES * LANES
    for first in range(0, whole, LANES):
        part = patterns[first : first + LANES]
        bits = reached_by(part, magnitude, least)
        while bits:
            i = lowest_bit(bits)
            places[count] = start + first + i
            kept[count] = part[i]
            count += 1
            bits &= bits - np.uint64(1)
    for i in range(whole, patterns.size):
        if width(patterns[i] & magnitude) >= least:
            places[count] = start + i
            kept[count] = patterns[i]
            count += 1
    return count


@jit
def add(first: NDArray[Any], second: NDArray[Any], total: NDArray[Any]) -> None:
    """Write the sums of two vectors to a third that shares no memory with them."""
    for i in range(total.size):
        total[i] = first[i] + second[i]


@jit
def add_to(total: NDArray[Any], second: NDArray[Any]) -> None:
    """Add a vector in place."""
    for i in range(total.size):
        total[i] += second[i]


@jit
def add_and_compact(
    terms: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    in_place: bool,
    patterns: NDArray[Any],
    magnitude: int,
    least: int,
    places: NDArray[np.int32],
    kept: NDArray[Any],
) -> int:
    """Write the sums of two vectors to a third, and `compact` them.

    `terms` are both vectors and their sum; `in_place` says that it is the first of them; and
    `patterns` are of the sum, in the same memory.
    """
    first, second, total = terms
    count = 0
    for start in range(0, patterns.size, STRETCH):
        part = slice(start, start + STRETCH)
        if in_place:
            add_to(total[part], second[part])
        else:
            add(first[part], second[part], total[part])
        count = compact(patterns[part], magnitude, least, start, places, kept, count)
    return count


@jit
def between(kept: NDArray[Any], magnitude: int, sure: int, out: NDArray[Any]) -> int:
    """Write the magnitudes below `sure`; return how many there are.

    Args:
        kept: patterns, `[n]`.
        magnitude: mask of a pattern without its sign.
        sure: pattern.
        out: `[n + 1]`.
    """
    width = kept.dtype.type
    count = 0
    for i in range(kept.size):
        bits = width(kept[i] & magnitude)
        out[count] = bits
        count += bits < sure
    return count


@jit
def count_ranks(kept: NDArray[Any], magnitude: int, nan: int, kth: int) -> tuple[int, int]:
    """How many magnitudes are above the k-th, and how many equal it; all NaN are equal."""
    width = kept.dtype.type
    above = np.int32(0)  # 16 bits would not hold the number of those of a chunk
    equal = np.int32(0)
    for i in range(kept.size):
        bits = min(width(kept[i] & magnitude), nan)
        above = np.int32(above + np.int32(bits > kth))
        equal = np.int32(equal + np.int32(bits == kth))
    return int(above), int(equal)


@jit
def write_all(
    places: NDArray[np.int32],
    kept: NDArray[Any],
    start: int,
    indices: NDArray[np.int64],
    values: NDArray[Any],
) -> None:
    """Write everything that was compacted from a chunk, whose first index is `start`."""
    for i in range(places.size):
        indices[i] = start + places[i]
        values[i] = kept[i]


@jit
def write_largest(
    places: NDArray[np.int32],
    kept: NDArray[Any],
    masks: tuple[int, int, int],
    start: int,
    ties: int,
    indices: NDArray[np.int64],
    values: NDArray[Any],
) -> None:
    """Write what is above the k-th magnitude, and the first `ties` of those equal to it.

    Args:
        places: indices, less `start`.
        kept: patterns.
        masks: mask of a pattern without its sign, pattern of NaN, the k-th magnitude.
        start: index of the first element.
        ties: number of equal ones to take.
        indices: room for as many as are written.
        values: room for as many as are written.
    """
    magnitude, nan, kth = masks
    width = kept.dtype.type
    count = 0
    for i in range(places.size):
        bits = min(width(kept[i] & magnitude), nan)
        tied = bits == kth and ties > 0
        if bits > kth or tied:
            indices[count] = start + places[i]
            values[count] = kept[i]
            count += 1
            ties -= tied


@jit
def kth_largest(magnitudes: NDArray[Any], k: int) -> Any:
    """The k-th largest of some magnitudes, k from 1: counts of leading bits, then of one bin."""
    width = magnitudes.dtype.type
    shift = width(8 * magnitudes.itemsize - 1 - LEADING)
    counts = np.zeros(1 << LEADING, np.int32)
    for i in range(magnitudes.size):
        counts[magnitudes[i] >> shift] += 1
    head = (1 << LEADING) - 1
    above = 0
    while above + counts[head] < k:
        above += counts[head]
        head -= 1
    alike = np.empty(counts[head], magnitudes.dtype)
    count = 0
    for i in range(magnitudes.size):
        if magnitudes[i] >> shift == width(head):
            alike[count] = magnitudes[i]
            count += 1
    rank = alike.size - (k - above)
    return np.partition(alike, rank)[rank]


@jit
def sampled(patterns: NDArray[Any], magnitude: int, k: int) -> int:
    """A magnitude that k elements are all but sure to reach, by a sample."""
    width = patterns.dtype.type
    sample = np.empty((patterns.size - 1) // STRIDE + 1, patterns.dtype)
    for i in range(sample.size):
        sample[i] = width(patterns[i * STRIDE] & magnitude)
    expected = k * sample.size / patterns.size
    rank = sample.size - math.ceil(expected + SIGMAS * math.sqrt(expected) + SIGMAS)
    return int(kth_largest(sample, sample.size - rank)) if rank > 0 else 0


@jit
def largest_of_few(
    patterns: NDArray[Any],
    magnitude: int,
    nan: int,
    indices: NDArray[np.int64],
    values: NDArray[Any],
) -> None:
    """Write the k largest magnitudes of a short vector.

    Args:
        patterns: `[n]`.
        magnitude: mask of a pattern without its sign.
        nan: the least pattern of a NaN, for which all of them stand.
        indices: room for k, from 1 to n.
        values: room for their patterns.
    """
    width = patterns.dtype.type
    k = indices.size
    least = width(0)
    if patterns.size > SHORT:
        least = width(sampled(patterns, magnitude, k))
    places, kept = np.empty(patterns.size, np.int32), np.empty(patterns.size, patterns.dtype)
    count = compact(patterns, magnitude, least, 0, places, kept, 0)
    if count < k:  # the sample misled
        count = compact(patterns, magnitude, width(0), 0, places, kept, 0)
    places, kept = places[:count], kept[:count]
    ranked = np.empty(count, patterns.dtype)
    for i in range(count):
        ranked[i] = min(width(kept[i] & magnitude), nan)
    kth = kth_largest(ranked, k)
    above, _ = count_ranks(kept, magnitude, nan, kth)
    write_largest(places, kept, (magnitude, nan, kth), 0, k - above, indices, values)


@jit
def subtract_at(residual: NDArray[Any], indices: NDArray[np.int64], sent: NDArray[Any]) -> int:
    """Subtract values at indices, 0 where a value is not finite; return how many were in range.

    It stops at the first index that is out of range.
    """
    nothing = residual.dtype.type(0)
    for i in range(indices.size):
        index = indices[i]
        if index < 0 or index >= residual.size:
            return i
        residual[index] = residual[index] - sent[i] if np.isfinite(sent[i]) else nothing
    return indices.size
