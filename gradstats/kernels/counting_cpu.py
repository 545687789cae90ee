"""The kernels in numba, threaded by us; `counting_cpu_loops` has those that count."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from itertools import pairwise
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import counting_cpu_loops as loops
from gradstats.kernels import counting_cpu_tables as over_tables
from gradstats.kernels.counting_cpu_loops import BLOCK, PADDING
from gradstats.kernels.grid import (
    GRIDS,
    INFINITY,
    INTEGERS,
    Grid,
    Tally,
    sums_16_bit,
    values_16_bit,
)
from gradstats.kernels.threads import CHUNK, in_threads

TABLES = 2  # so that runs of one value do not wait for their own last store
WIDEST = 1 << 16  # keys of a table that is held twice: 512 kB in all


class _Own(threading.local):
    """The arrays of one thread."""

    def __init__(self) -> None:
        self.tables: dict[str, NDArray[np.int32]] = {}


_own = _Own()

Blocks = tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    if len(values) <= CHUNK:
        return _tally_run(values, np.array([0, len(values)]))[0]
    grid, patterns = GRIDS[values.dtype], _patterns(values)
    if grid.bits == 16:
        return _tally_of(_count_patterns(patterns, grid), values.dtype)
    array, keys = values.numpy(), _keys(grid)

    def work(chunks: Iterator[slice]) -> tuple[NDArray[np.int32], dict[int, Any]]:
        counts = _tables(grid)
        sums = {c.start: _sums(patterns[c], array[c], keys, counts) for c in chunks}
        return counts, sums

    tables, sums = zip(*in_threads(work, len(array)), strict=True)
    every = [of_chunk for _, of_chunk in sorted(reduce(or_, sums).items())]
    by_block, zeros = zip(*every, strict=True)
    special = np.append(sum(zeros), [0, 0, 0])
    rows = _rows(_added(tables), keys, special)
    if rows[1:].sum() + special.sum() < len(array):
        over_tables.count_nonfinite(patterns, keys, special)
    return Tally(*rows, *special.tolist(), *_combined(np.concatenate(by_block)))


def count_segments(values: Tensor, ends: NDArray[np.int64]) -> Iterator[Tally]:
    """See `gradstats.kernels.count_segments`."""
    first = 0
    while first < len(ends) - 1:
        start = ends[first]
        last = max(first + 1, int(np.searchsorted(ends, start + CHUNK, "right")) - 1)
        run = values[start : ends[last]]
        if len(run) > CHUNK:
            yield count(run)
        else:
            yield from _tally_run(run, ends[first : last + 1] - start)
        first = last


def _tally_run(values: Tensor, ends: NDArray[np.int64]) -> list[Tally]:
    """Of segments that one thread counts one after another, in a table that they share."""
    grid, patterns, sizes = GRIDS[values.dtype], _patterns(values), np.diff(ends)
    narrow = grid.bits == 16
    segments = over_tables.Segments(
        specials=np.zeros((len(sizes), 5), np.int64),
        largest=np.zeros(len(sizes), patterns.dtype),
        rows=np.empty((3, int(np.minimum(sizes, grid.first_nonfinite).sum())), np.int32),
        row_ends=np.zeros(len(ends), np.int64),
        listed=np.empty((2, int(np.minimum(sizes, narrow << 16).sum())), np.int32),
        listed_ends=np.zeros(len(ends), np.int64),
    )
    sums = (_tally_narrow if narrow else _tally_wide)(values, patterns, ends, segments)
    places, specials = pairwise(segments.row_ends.tolist()), segments.specials.tolist()
    return [
        Tally(*segments.rows[:, start:end], *special, *numbers)
        for (start, end), special, numbers in zip(places, specials, sums, strict=True)
    ]


def _tally_wide(
    values: Tensor, patterns: NDArray[Any], ends: NDArray[np.int64], segments: over_tables.Segments
) -> list[Sequence[float]]:
    """Sums and the largest magnitude of every segment, from those of its blocks."""
    keys = _keys(GRIDS[values.dtype])
    starts = np.append(0, (-(-np.diff(ends) // BLOCK)).cumsum()).tolist()
    blocks = sums, largest, _ = _blocks(starts[-1], patterns.dtype)
    heads, tables = _heads(patterns, keys), _own_tables(GRIDS[values.dtype])
    over_tables.tally_wide(patterns, values.numpy(), *heads, ends, keys, tables, blocks, segments)
    _put_largest(sums, largest)
    rows = sums.tolist()
    return [
        rows[start] if end - start == 1 else _combined(sums[start:end])
        for start, end in pairwise(starts)
    ]


def _tally_narrow(
    values: Tensor, patterns: NDArray[Any], ends: NDArray[np.int64], segments: over_tables.Segments
) -> list[Sequence[float]]:
    """Sums and the largest magnitude of every segment, from how often each value occurs."""
    every = values_16_bit(values.dtype)
    grid = GRIDS[values.dtype]
    over_tables.tally_16_bit(patterns, ends, _keys(grid), _own_tables(grid), segments)
    listed, counts = segments.listed[:, : segments.listed_ends[-1]]
    finite = np.isfinite(every[listed])
    starts = np.append(0, finite.cumsum())[segments.listed_ends].tolist()
    present, often = every[listed[finite]], counts[finite].astype(np.float64)
    return [
        (*sums_16_bit(present[start:end], often[start:end]), largest)
        for (start, end), largest in zip(
            pairwise(starts), every[segments.largest].tolist(), strict=True
        )
    ]


def _patterns(values: Tensor) -> NDArray[Any]:
    width = values.dtype.itemsize
    return values.view(INTEGERS[width]).numpy().view(f"uint{8 * width}")


@cache
def _keys(grid: Grid) -> loops.Keys:
    pattern = np.dtype(f"uint{grid.bits}").type
    magnitude, infinity = pattern((1 << (grid.bits - 1)) - 1), pattern(INFINITY[grid.dtype])
    below = pattern((1 << grid.shift) - 1)
    return loops.Keys(magnitude, infinity, grid.shift, below, half=grid.cells)


def _sums(
    patterns: NDArray[Any], array: NDArray[Any], keys: loops.Keys, counts: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums and largest magnitude of every block, and zeros of either sign; counts on the way."""
    blocks = sums, largest, zeros = _blocks(-(-len(array) // BLOCK), patterns.dtype)
    loops.count_range(patterns, array, *_heads(patterns, keys), keys, counts, *blocks)
    _put_largest(sums, largest)
    return sums, zeros.sum(axis=0)


def _blocks(n: int, dtype: np.dtype[Any]) -> Blocks:
    """Sums, largest pattern and zeros of n blocks, for the loops to fill in."""
    return np.zeros((n, 4)), np.zeros(n, dtype), np.zeros((n, 2), np.int64)


def _put_largest(sums: NDArray[np.float64], largest: NDArray[Any]) -> None:
    floats = largest.view(f"float{8 * largest.itemsize}")
    sums[:, 3] = np.maximum(sums[:, 3], floats)


def _combined(sums: NDArray[np.float64]) -> Sequence[float]:
    total, total_abs, total_sq = (float(column.sum()) for column in sums.T[:3])
    return total, total_abs, total_sq, float(sums[:, 3].max(initial=0.0))


def _heads(patterns: NDArray[Any], keys: loops.Keys) -> tuple[NDArray[Any], Any]:
    """The leading half of every pattern, and how many of its bits are below the key."""
    bits = 4 * patterns.itemsize
    half = np.dtype(f"uint{bits}")
    return patterns.view(half)[1::2], half.type(keys.shift - bits)


def _tables(grid: Grid) -> NDArray[np.int32]:
    """Counts by sign and cell, `[kinds, copies, keys]`: a table per kind of bin."""
    keys = 2 * grid.cells
    return np.zeros((grid.kinds, TABLES if keys <= WIDEST else 1, keys + PADDING), np.int32)


def _own_tables(grid: Grid) -> NDArray[np.int32]:
    """Those of the calling thread: the loops over segments leave them as empty as they were."""
    if grid.name not in _own.tables:
        _own.tables[grid.name] = _tables(grid)
    return _own.tables[grid.name]


def _added(tables: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """All copies together, `[kinds, keys]`."""
    copies = [each[:, i, :-PADDING] for each in tables for i in range(each.shape[1])]
    whole = copies[0].astype(np.int64)
    for each in copies[1:]:
        whole += each
    return whole


def _rows(
    counts: NDArray[np.int64], keys: loops.Keys, special: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Bins and the elements of either sign in them, of tables that become empty."""
    over_tables.drop_zeros(counts[:, np.newaxis], keys, special)
    rows = np.empty((3, counts.size // 2), np.int64)
    return rows[:, : over_tables.take_rows(counts, 0, keys, 0, keys.half - 1, rows, 0)]


def _tally_of(table: NDArray[np.int64], dtype: torch.dtype) -> Tally:
    """The tally of a 16-bit dtype from how often each pattern occurs; the table becomes empty."""
    keys, every = _keys(GRIDS[dtype]), values_16_bit(dtype)
    listed, rows = np.empty((2, table.size), np.int64), np.empty((3, keys.half), np.int64)
    zeros, whole = (int(table[0]), int(table[keys.half])), (keys, 1, keys.half - 1)
    patterns, counts = listed[:, : over_tables.take_list(table, *whole, listed, 0)]
    rows = rows[:, : over_tables.take_rows(table[np.newaxis], 0, *whole, rows, 0)]
    values = every[patterns]
    finite = np.isfinite(values)
    kinds = (np.isnan(values), np.isposinf(values), np.isneginf(values))
    return Tally(
        *rows,
        *zeros,
        *(int(counts[kind].sum()) for kind in kinds),
        *sums_16_bit(values[finite], counts[finite].astype(np.float64)),
        max_abs=float(every[rows[0, -1:]].max(initial=0.0)),
    )


def _count_patterns(patterns: NDArray[np.uint16], grid: Grid) -> NDArray[np.int64]:
    def work(chunks: Iterator[slice]) -> NDArray[np.int32]:
        counts = _tables(grid)
        for chunk in chunks:
            loops.count_16_bit(patterns[chunk], counts[0])
        return counts

    return np.asarray(_added(in_threads(work, patterns.size))[0])
