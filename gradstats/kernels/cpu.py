"""The kernels in numba, threaded by us.

`parallel=True` is not used: such kernels called from two threads can abort the process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.grid import GRIDS, INTEGERS, Tally, round_down, tally_16_bit

BLOCK = 1 << 14  # elements: a float32 block and its bins stay in the second-level cache
PIECE = 1 << 20  # elements below which a second thread does not pay

jit: Callable[..., Any] = numba.njit(nogil=True, cache=True, boundscheck=False)
# Sums may be reordered into vector lanes (the lanes are the same whatever the thread), NaN and inf
# stay honest.
jit_sums: Callable[..., Any] = numba.njit(
    nogil=True, cache=True, boundscheck=False, fastmath={"reassoc", "contract"}
)


@jit
def _count_block(patterns: NDArray[Any], shift: int, mask: int, counts: NDArray[Any]) -> None:
    # Two tables: runs of equal values would otherwise wait for their own last store.
    even = patterns.size & ~1
    for i in range(0, even, 2):
        counts[0, (patterns[i] >> shift) & mask] += 1
        counts[1, (patterns[i + 1] >> shift) & mask] += 1
    if even < patterns.size:
        counts[0, (patterns[even] >> shift) & mask] += 1


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
def _largest_pattern(patterns: NDArray[Any], magnitude: int) -> int:
    # as integers: a maximum of floats, in which a NaN has its say, is not put into vector lanes
    largest = patterns[0] & magnitude
    for i in range(patterns.size):
        largest = max(largest, patterns[i] & magnitude)
    return largest  # type: ignore[no-any-return]


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
def _count_range(patterns: NDArray[Any], shift: int, mask: int, counts: NDArray[Any]) -> None:
    for start in range(0, patterns.size, BLOCK):
        _count_block(patterns[start : start + BLOCK], shift, mask, counts)


@jit
def _tally_range(
    patterns: NDArray[Any],
    values: NDArray[Any],
    shift: int,
    masks: tuple[int, int],
    counts: NDArray[Any],
    sums: NDArray[Any],
    largest: NDArray[Any],
) -> None:
    for block in range(sums.shape[0]):
        part = values[block * BLOCK : (block + 1) * BLOCK]
        bits = patterns[block * BLOCK : (block + 1) * BLOCK]
        total, total_abs, total_sq = _sum_block(part)
        if np.isfinite(total_abs):
            largest[block] = _largest_pattern(bits, masks[1])
        else:
            total, total_abs, total_sq, top = _sum_finite(part)
            sums[block, 3] = top
        sums[block, 0] = total
        sums[block, 1] = total_abs
        sums[block, 2] = total_sq
        _count_block(bits, shift, masks[0], counts)


@jit
def _zeros(patterns: NDArray[Any], sign: int) -> tuple[int, int]:
    positive = 0
    negative = 0
    for i in range(patterns.size):
        positive += patterns[i] == 0
        negative += patterns[i] == sign
    return positive, negative


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


def _in_threads(work: Callable[[int, int], Any], n: int) -> list[Any]:
    """Run `work(start, stop)` over block-aligned pieces of `n` elements, one a torch thread."""
    pieces = max(1, min(torch.get_num_threads(), n // PIECE))
    per_piece = -(-n // (pieces * BLOCK)) * BLOCK
    starts = range(0, n, per_piece) if n else range(1)
    if len(starts) == 1:
        return [work(0, n)]
    with ThreadPoolExecutor(len(starts)) as pool:
        return list(pool.map(lambda start: work(start, min(start + per_piece, n)), starts))


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid = GRIDS[values.dtype]
    integers = values.view(INTEGERS[values.dtype.itemsize]).numpy()
    patterns = integers.view(f"uint{grid.bits}")
    if grid.bits == 16:
        return tally_16_bit(_count_patterns(patterns), values.dtype)
    array = values.numpy()
    keys = 1 << (grid.bits - grid.shift)

    def work(start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        counts = np.zeros((2, keys), np.int32)
        sums = np.zeros((-(-(stop - start) // BLOCK), 4))
        largest = np.zeros(len(sums), patterns.dtype)
        part = slice(start, stop)
        masks = (keys - 1, patterns.dtype.type((1 << (grid.bits - 1)) - 1))
        _tally_range(patterns[part], array[part], grid.shift, masks, counts, sums, largest)
        sums[:, 3] = np.maximum(sums[:, 3], largest.view(array.dtype))
        return np.add(*counts, dtype=np.int64), sums

    parts = _in_threads(work, values.numel())
    counts = reduce(np.add, [part[0] for part in parts])
    sums = np.concatenate([part[1] for part in parts])
    zeros = _zeros(patterns, 1 << (grid.bits - 1)) if counts[0] + counts[grid.bins] else (0, 0)
    infinite = counts[grid.first_nonfinite : grid.bins].sum() + (
        counts[grid.bins + grid.first_nonfinite :].sum()
    )
    return Tally(
        counts=counts,
        positive_zeros=int(zeros[0]),
        negative_zeros=int(zeros[1]),
        nan=int(np.isnan(array).sum()) if infinite else 0,
        positive_inf=int(np.isposinf(array).sum()) if infinite else 0,
        negative_inf=int(np.isneginf(array).sum()) if infinite else 0,
        total=float(sums[:, 0].sum()),
        total_abs=float(sums[:, 1].sum()),
        total_sq=float(sums[:, 2].sum()),
        max_abs=float(sums[:, 3].max(initial=0.0)),
    )


def _count_patterns(patterns: NDArray[np.uint16]) -> NDArray[np.int64]:
    def work(start: int, stop: int) -> NDArray[np.int64]:
        counts = np.zeros((2, 1 << 16), np.int32)
        _count_range(patterns[start:stop], 0, (1 << 16) - 1, counts)
        return np.asarray(np.add(*counts, dtype=np.int64))

    return np.asarray(reduce(np.add, _in_threads(work, patterns.size)))


def select(values: Tensor, threshold: float) -> Tensor:
    """See `gradstats.kernels.select`."""
    array = values.detach().numpy()
    limit = round_down(threshold, values.dtype)

    def work(start: int, stop: int) -> NDArray[np.int64]:
        part = array[start:stop]
        starts = np.zeros(-(-(stop - start) // BLOCK) + 1, np.int64)
        _count_above(part, limit, starts[1:])
        starts = starts.cumsum()
        out = np.empty(starts[-1], np.int64)
        _write_above(part, limit, start, starts, out)
        return out

    return torch.from_numpy(np.concatenate(_in_threads(work, array.size)))
