"""The kernels in numba, threaded by us.

`parallel=True` is not used: such kernels called from two threads can abort the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.grid import (
    GRIDS,
    INTEGERS,
    Grid,
    Tally,
    round_down,
    sparse,
    tally_16_bit,
)

BLOCK = 1 << 14  # elements: a float32 block and its bins stay in the second-level cache
CHUNK = 1 << 19  # elements that a thread takes at a time
MOST = 1 << 30  # elements that 32-bit counts are sure to hold
SHORT = 1 << 13  # elements up to which sorting the keys is cheaper than a table of counts
TABLES = 2  # so that runs of one value do not wait for their own last store
PADDING = 80  # entries between tables: keys a multiple of 4 kB apart would wait for each other
WIDEST = 1 << 16  # keys of a table that is held twice: 512 kB in all

jit: Callable[..., Any] = numba.njit(nogil=True, cache=True, boundscheck=False)
# Sums may be reordered into vector lanes (the lanes are the same whatever the thread), NaN and inf
# stay honest.
jit_sums: Callable[..., Any] = numba.njit(
    nogil=True, cache=True, boundscheck=False, fastmath={"reassoc", "contract"}
)


@jit
def _count_heads(heads: NDArray[Any], shift: int, counts: NDArray[Any]) -> None:
    one, two = counts[0], counts[-1]
    whole = heads.size - heads.size % 2
    for i in range(0, whole, 2):
        one[heads[i] >> shift] += 1
        two[heads[i + 1] >> shift] += 1
    for i in range(whole, heads.size):
        one[heads[i] >> shift] += 1


@jit
def _count_nonzero(
    heads: NDArray[Any], shift: int, patterns: NDArray[Any], magnitude: int, counts: NDArray[Any]
) -> None:
    # Among many zeros, skipping them costs less than their turns in the table.
    for i in range(patterns.size):
        if patterns[i] & magnitude:
            counts[0, heads[i] >> shift] += 1


@jit_sums
def _sum_block(values: NDArray[Any]) -> tuple[float, float, float]:
    total = 0.0
    total_abs = 0.0
    total_sq = 0.0
    for i in range(values.size):
        x = np.float64(values[i])
        total += x
        total_abs += abs(x)
        total_sq += x * x
    return total, total_abs, total_sq


@jit
def _extremes(patterns: NDArray[Any], magnitude: int) -> tuple[int, int]:
    # As integers: a maximum of floats, in which a NaN has its say, is not put into vector lanes.
    # Every step is cast back to their width, which numba would double, halving the lanes.
    width = patterns.dtype.type
    largest = width(0)
    zeros = width(0)
    for i in range(patterns.size):
        bits = width(patterns[i] & magnitude)
        largest = max(largest, bits)
        zeros = width(zeros + width(bits == width(0)))
    return largest, zeros


@jit
def _count_value(patterns: NDArray[Any], value: int) -> int:
    width = patterns.dtype.type
    found = width(0)
    for i in range(patterns.size):
        found = width(found + width(patterns[i] == value))
    return int(found)


@jit
def _sum_finite(values: NDArray[Any]) -> tuple[float, float, float, float]:
    total = 0.0
    total_abs = 0.0
    total_sq = 0.0
    largest = 0.0
    for i in range(values.size):
        x = np.float64(values[i])
        if np.isfinite(x):
            total += x
            total_abs += abs(x)
            total_sq += x * x
            largest = max(largest, abs(x))
    return total, total_abs, total_sq, largest


@jit
def _sum_range(
    patterns: NDArray[Any],
    values: NDArray[Any],
    magnitude: int,
    sums: NDArray[Any],
    largest: NDArray[Any],
    zeros: NDArray[Any],
) -> None:
    for block in range(sums.shape[0]):
        part = values[block * BLOCK : (block + 1) * BLOCK]
        bits = patterns[block * BLOCK : (block + 1) * BLOCK]
        top, either = _extremes(bits, magnitude)
        if either:
            positive = _count_value(bits, bits.dtype.type(0))
            zeros[block, 0] = positive
            zeros[block, 1] = either - positive
        if not top:
            continue
        total, total_abs, total_sq = _sum_block(part)
        if np.isfinite(total_abs):
            largest[block] = top
        else:
            total, total_abs, total_sq, sums[block, 3] = _sum_finite(part)
        sums[block, 0] = total
        sums[block, 1] = total_abs
        sums[block, 2] = total_sq


@jit
def _tally_range(
    patterns: NDArray[Any],
    values: NDArray[Any],
    heads: NDArray[Any],
    shift: int,
    magnitude: int,
    counts: NDArray[Any],
    sums: NDArray[Any],
    largest: NDArray[Any],
    zeros: NDArray[Any],
) -> None:
    negative_zero = (counts.shape[1] - PADDING) // 2
    for block in range(sums.shape[0]):
        here = slice(block * BLOCK, (block + 1) * BLOCK)
        one = slice(block, block + 1)
        _sum_range(patterns[here], values[here], magnitude, sums[one], largest[one], zeros[one])
        positive, negative = zeros[block]
        if 2 * (positive + negative) < patterns[here].size:
            _count_heads(heads[here], shift, counts)
            continue
        counts[0, 0] += positive
        counts[0, negative_zero] += negative
        if positive + negative < patterns[here].size:
            _count_nonzero(heads[here], shift, patterns[here], magnitude, counts)


@jit
def _count_above(values: NDArray[Any], threshold: float, counts: NDArray[Any]) -> None:
    for block in range(counts.size):
        above = 0
        part = values[block * BLOCK : (block + 1) * BLOCK]
        for i in range(part.size):
            above += not abs(part[i]) <= threshold
        counts[block] = above


@jit
def _write_above(
    values: NDArray[Any],
    threshold: float,
    offset: int,
    starts: NDArray[Any],
    out: NDArray[Any],
) -> None:
    for block in range(starts.size - 1):
        position = starts[block]
        if position == starts[block + 1]:
            continue
        part = values[block * BLOCK : (block + 1) * BLOCK]
        for i in range(part.size):
            if not abs(part[i]) <= threshold:
                out[position] = offset + block * BLOCK + i
                position += 1


def _in_threads(work: Callable[[Iterator[slice]], Any], n: int) -> list[Any]:
    """Run `work(chunks)` in as many threads as torch uses; they share the chunks of n elements.

    A thread that has to wait for its core, as after an operation of torch whose threads still
    spin, takes fewer chunks and holds nobody up.
    """
    found = []
    for first in range(0, n, MOST):
        starts = range(first, min(first + MOST, n), CHUNK)
        chunks = iter([slice(start, min(start + CHUNK, n)) for start in starts])
        others = min(torch.get_num_threads(), len(starts) // 2) - 1
        if others < 1:
            found.append(work(chunks))
            continue
        with ThreadPoolExecutor(others) as pool:
            waiting = [pool.submit(work, chunks) for _ in range(others)]
            found += [work(chunks), *(each.result() for each in waiting)]
    return found


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid = GRIDS[values.dtype]
    integers = values.view(INTEGERS[values.dtype.itemsize]).numpy()
    patterns = integers.view(f"uint{grid.bits}")
    if grid.bits == 16:
        return tally_16_bit(_count_patterns(patterns), values.dtype)
    array = values.numpy()
    if len(array) <= SHORT:
        return _tally(array, *_sorted_keys(patterns, grid.shift), *_sums(patterns, array, grid))

    def work(chunks: Iterator[slice]) -> tuple[NDArray[np.int32], dict[int, Any]]:
        counts = _tables(2 * grid.bins)
        sums = {c.start: _sums(patterns[c], array[c], grid, counts) for c in chunks}
        return counts, sums

    tables, sums = zip(*_in_threads(work, len(array)), strict=True)
    every = [of_chunk for _, of_chunk in sorted(reduce(or_, sums).items())]
    by_block, zeros = zip(*every, strict=True)
    keys, counts = _occupied(tables[0]) if len(tables) == 1 else sparse(_added(tables))
    return _tally(array, keys, counts, np.concatenate(by_block), sum(zeros))


def _sums(
    patterns: NDArray[Any], array: NDArray[Any], grid: Grid, counts: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums and largest magnitude of every block, and zeros of either sign; counts on the way."""
    blocks = -(-len(array) // BLOCK)
    sums, zeros = np.zeros((blocks, 4)), np.zeros((blocks, 2), np.int64)
    largest = np.zeros(blocks, patterns.dtype)
    magnitude = patterns.dtype.type((1 << (grid.bits - 1)) - 1)
    found = (magnitude, sums, largest, zeros)
    if counts is None:
        _sum_range(patterns, array, *found)
    else:
        _tally_range(patterns, array, *_heads(patterns, grid), magnitude, counts, *found[1:])
    sums[:, 3] = np.maximum(sums[:, 3], largest.view(array.dtype))
    return sums, zeros.sum(axis=0)


def _heads(patterns: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Any]:
    """The leading half of every pattern, and how many of its bits are below the key."""
    half = np.dtype(f"uint{grid.bits // 2}")
    return patterns.view(half)[1::2], half.type(grid.shift - grid.bits // 2)


def _tables(keys: int) -> NDArray[np.int32]:
    return np.zeros((TABLES if keys <= WIDEST else 1, keys + PADDING), np.int32)


def _added(tables: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    return np.asarray(sum(each[:, :-PADDING].sum(axis=0, dtype=np.int64) for each in tables))


@jit
def _occupied(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    # as `sparse(_added([counts]))`, a quarter of the time: most of the table is empty
    one, two, twice = counts[0], counts[-1], counts.shape[0] > 1
    size = 0
    for key in range(counts.shape[1] - PADDING):
        size += (one[key] | two[key]) != 0
    found = np.empty((2, size), np.int64)
    place = 0
    for key in range(counts.shape[1] - PADDING):
        if one[key] | two[key]:
            found[0, place] = key
            found[1, place] = one[key] + twice * np.int64(two[key])
            place += 1
    return found


def _sorted_keys(
    patterns: NDArray[Any], shift: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and counts of a short vector, for which a table would be mostly empty."""
    keys = np.sort(patterns >> patterns.dtype.type(shift))
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]), len(keys) - 1)[: len(keys)]
    counts = ends + 1
    counts[1:] -= ends[:-1] + 1
    return keys[ends].astype(np.int64), counts


def _tally(
    array: NDArray[Any],
    keys: NDArray[np.int64],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    zeros: NDArray[np.int64],
) -> Tally:
    grid = GRIDS[torch.from_numpy(array[:0]).dtype]
    broken = bool(counts[(keys & (grid.bins - 1)) >= grid.first_nonfinite].sum())
    total, total_abs, total_sq = (column.sum() for column in sums.T[:3])
    return Tally(
        keys=keys,
        counts=counts,
        positive_zeros=int(zeros[0]),
        negative_zeros=int(zeros[1]),
        nan=int(np.isnan(array).sum()) if broken else 0,
        positive_inf=int(np.isposinf(array).sum()) if broken else 0,
        negative_inf=int(np.isneginf(array).sum()) if broken else 0,
        total=float(total),
        total_abs=float(total_abs),
        total_sq=float(total_sq),
        max_abs=float(sums[:, 3].max(initial=0.0)),
    )


def _count_patterns(patterns: NDArray[np.uint16]) -> NDArray[np.int64]:
    def work(chunks: Iterator[slice]) -> NDArray[np.int32]:
        counts = _tables(1 << 16)
        for chunk in chunks:
            _count_heads(patterns[chunk], np.uint16(0), counts)
        return counts

    return _added([_tables(1 << 16), *_in_threads(work, patterns.size)])


def select(values: Tensor, threshold: float) -> Tensor:
    """See `gradstats.kernels.select`."""
    array = values.detach().numpy()
    limit = round_down(threshold, values.dtype)

    def work(chunks: Iterator[slice]) -> dict[int, NDArray[np.int64]]:
        return {chunk.start: _selected(array[chunk], limit, chunk.start) for chunk in chunks}

    found: dict[int, NDArray[np.int64]] = reduce(or_, _in_threads(work, array.size), {})
    every = [np.zeros(0, np.int64), *(found[start] for start in sorted(found))]
    return torch.from_numpy(np.concatenate(every))


def _selected(part: NDArray[Any], limit: float, offset: int) -> NDArray[np.int64]:
    """Indices of the elements of a chunk above the limit."""
    starts = np.zeros(-(-len(part) // BLOCK) + 1, np.int64)
    _count_above(part, limit, starts[1:])
    starts = starts.cumsum()
    out = np.empty(starts[-1], np.int64)
    _write_above(part, limit, offset, starts, out)
    return out
