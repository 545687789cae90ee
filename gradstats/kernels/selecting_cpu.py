"""Selection in numba: one pass compacts what may be selected, and only that is ranked.

Magnitudes are compared as the integers of their bit patterns: finite < inf < NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import selecting_cpu_loops as loops
from gradstats.kernels.selecting_cpu_digits import DIGIT, digit_counts, first_equal
from gradstats.kernels.selecting_cpu_loops import SIGMAS
from gradstats.kernels.selecting_cpu_vectors import (
    Selected,
    Vector,
    as_tensors,
    pattern_below,
    sum_of,
    vector_of,
)
from gradstats.kernels.threads import CHUNK, in_threads, shared

MUCH = 1 << 16  # elements that a thread is started to write
FEW = 1 << 17  # elements up to which one call of one thread does it all
MOST_TIES = 16  # a value with this share of a sample, inverted: compacting would copy too much
Run = tuple[NDArray[np.int32], NDArray[Any]]


class Bounds(NamedTuple):
    """Magnitudes around the k-th, as patterns.

    Attributes:
        least: k elements are all but sure to reach it.
        sure: k elements are all but sure not to reach it.
    """

    least: int
    sure: int


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`."""
    few = values.numel() <= FEW
    selected = _above_in_few if few else _above
    return as_tensors(selected(vector_of(values), threshold), values.dtype)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`."""
    n = values.numel()
    selected = _largest_of_few if n <= FEW else _largest
    return as_tensors(selected(vector_of(values), min(k, n)), values.dtype)


def compact_sum(
    first: Tensor, second: Tensor, total: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact_sum`."""
    if total.numel() <= FEW:
        return compact(torch.add(first, second, out=total), threshold)
    return as_tensors(_above(sum_of(first, second, total), threshold), total.dtype)


def largest_of_sum(first: Tensor, second: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest_of_sum`."""
    n = total.numel()
    if n <= FEW:
        return largest(torch.add(first, second, out=total), k)
    return as_tensors(_largest(sum_of(first, second, total), min(k, n)), total.dtype)


def subtract_at(residual: Tensor, indices: Tensor, sent: Tensor) -> None:
    """See `gradstats.kernels.subtract_at`."""
    done = loops.subtract_at(residual.numpy(), indices.numpy(), sent.numpy())
    if done < len(indices):
        rule = f"index must lie in [0, {len(residual)})"
        raise IndexError(f"{rule}, got {int(indices[done])}")


def _above_in_few(vector: Vector, threshold: float) -> Selected:
    """What exceeds a threshold, by one call of one thread."""
    patterns, dtype = vector.patterns, vector.patterns.dtype
    places, kept = np.empty(patterns.size, np.int32), np.empty(patterns.size, dtype)
    least = dtype.type(pattern_below(threshold, vector.dtype) + 1)
    count = loops.compact(patterns, vector.magnitude, least, 0, places, kept, 0)
    return places[:count].astype(np.int64), kept[:count].copy()


def _above(vector: Vector, threshold: float) -> Selected:
    """What exceeds a threshold."""
    least = pattern_below(threshold, vector.dtype) + 1
    return _joined(_runs(vector, least), vector.patterns.dtype)


def _largest_of_few(vector: Vector, k: int) -> Selected:
    """The k largest magnitudes, from 0 to n of them, by one call of one thread."""
    patterns = vector.patterns
    indices, values = np.empty(k, np.int64), np.empty(k, patterns.dtype)
    if k:
        loops.largest_of_few(patterns, vector.magnitude, vector.nan, indices, values)
    return indices, values


def _largest(vector: Vector, k: int) -> Selected:
    """The k largest magnitudes, from 1 to n of them, by a sample, a pass and a ranking.

    A sample gives a magnitude that somewhat more than k elements reach, and one that somewhat
    fewer reach. The first are compacted in one pass, and those between the two ranked. Where the
    sample misled, or a value is so frequent that compacting would copy much of the vector, passes
    over 16 bits each find the k-th magnitude instead.
    """
    bounds = _bounds(vector.sample(), k / vector.patterns.size, int(vector.nan))
    if bounds is None:
        vector.add()
        return _by_digits(vector, k)
    runs = _runs(vector, bounds.least)
    few = sum(len(places) for places, _ in runs.values()) < k
    return _by_digits(vector, k) if few else _ranked(runs, k, bounds.sure, vector)


def _bounds(sample: NDArray[Any], share: float, nan: int) -> Bounds | None:
    """Magnitudes around the k-th; None if there are none to be had."""
    expected = share * sample.size
    margin = SIGMAS * math.sqrt(expected) + SIGMAS
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

    runs: dict[int, Run] = reduce(or_, in_threads(work, n), {})
    return {start: runs[start] for start in sorted(runs)}


def _joined(runs: dict[int, Run], dtype: np.dtype[Any]) -> Selected:
    """All that was compacted."""
    count = sum(len(places) for places, _ in runs.values())
    indices, values, filled, jobs = np.empty(count, np.int64), np.empty(count, dtype), 0, []
    for start, run in runs.items():
        part = slice(filled, filled + len(run[0]))
        jobs.append((*run, start, indices[part], values[part]))
        filled = part.stop
    _write(loops.write_all, jobs, count)
    return indices, values


def _ranked(runs: dict[int, Run], k: int, sure: int, vector: Vector) -> Selected:
    """The k largest magnitudes of what was compacted; of those that equal the k-th, the first."""
    dtype = vector.patterns.dtype
    if sum(len(places) for places, _ in runs.values()) == k:
        return _joined(runs, dtype)
    masks = vector.magnitude, vector.nan, _kth(runs, k, sure, vector)
    counts = [loops.count_ranks(kept, *masks) for _, kept in runs.values()]
    ties = k - sum(above for above, _ in counts)
    indices, values, filled, jobs = np.empty(k, np.int64), np.empty(k, dtype), 0, []
    for (start, run), (above, equal) in zip(runs.items(), counts, strict=True):
        taken = min(equal, ties)
        part = slice(filled, filled + above + taken)
        jobs.append((*run, masks, start, taken, indices[part], values[part]))
        ties -= taken
        filled = part.stop
    _write(loops.write_largest, jobs, k)
    return indices, values


def _write(loop: Callable[..., None], jobs: list[tuple[Any, ...]], count: int) -> None:
    """Call a loop for each of some jobs, in threads if they write much memory that is new."""

    def work(own: Iterator[tuple[Any, ...]]) -> None:
        for job in own:
            loop(*job)

    shared(work, iter(jobs), min(torch.get_num_threads(), len(jobs), count // MUCH))


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
    bits, vector = 8 * patterns.itemsize, vector._replace(terms=None)
    prefix, above, shift = 0, 0, bits
    while shift:
        shift -= DIGIT
        counts = digit_counts(patterns, prefix, shift)
        if prefix == 0 and shift == bits - DIGIT and counts[infinity >> shift :].sum() >= k:
            return _ranked(_runs(vector, infinity), k, infinity + 1, vector)
        from_top = counts[::-1].cumsum()
        digit = len(counts) - 1 - int(np.searchsorted(from_top, k - above))
        above += int(counts[digit + 1 :].sum())
        prefix = prefix << DIGIT | digit
    indices, larger = _joined(_runs(vector, prefix + 1), patterns.dtype)
    equal = np.empty(k - above, np.int64)
    first_equal(patterns, patterns.dtype.type(prefix), equal)
    indices = np.concatenate([indices, equal])
    order = indices.argsort()
    return indices[order], np.concatenate([larger, patterns[equal]])[order]
