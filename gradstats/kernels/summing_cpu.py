"""Sums over a vector in numba, where nothing else of its counts is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels import counting_cpu_loops as loops
from gradstats.kernels.coding_cpu import KINDS
from gradstats.kernels.coding_cpu_loops import moments
from gradstats.kernels.coding_cpu_patterns import AS_IT_IS
from gradstats.kernels.counting_cpu import _keys, _patterns
from gradstats.kernels.counting_cpu_loops import BLOCK
from gradstats.kernels.grid import GRIDS, Magnitudes
from gradstats.kernels.threads import CHUNK, in_threads

RUN = 1 << 14  # elements that are read twice, the second time from the cache


def sum_magnitudes(values: Tensor) -> Magnitudes | None:
    """See `gradstats.kernels.sum_magnitudes`."""
    n, dtype = values.numel(), values.dtype
    if dtype.itemsize == 2 or not n:
        return None
    patterns, array, keys = _patterns(values), values.numpy(), _keys(GRIDS[dtype])
    magnitude, below = keys.magnitude, keys.below
    sums = np.zeros((-(-n // BLOCK), 4))  # as those of a tally, which are added alike

    def work(chunks: Iterator[slice]) -> tuple[int, int]:
        largest, zeros = 0, 0
        for c in chunks:
            own = sums[c.start // BLOCK : -(-c.stop // BLOCK)]
            top, none = loops.sum_magnitudes(patterns[c], array[c], magnitude, below, own)
            largest, zeros = max(largest, top), zeros + none
        return largest, zeros

    if n <= CHUNK:
        largest, zeros = loops.sum_magnitudes(patterns, array, magnitude, below, sums)
    else:
        tops, several = zip(*in_threads(work, n), strict=True)
        largest, zeros = max(tops), sum(several)
    if largest >= keys.infinity:
        return None
    return Magnitudes(n - zeros, float(sums[:, 1].sum()))


def deviation(values: Tensor) -> Tensor:
    """See `gradstats.kernels.deviation`."""
    n, kind = len(values), KINDS.get(values.dtype, AS_IT_IS)
    array = values.numpy() if kind == AS_IT_IS else _patterns(values)
    runs = np.empty((-(-n // RUN), 2))

    def work(chunks: Iterator[slice]) -> None:
        for c in chunks:
            moments(array[c], kind, RUN, runs[c.start // RUN : -(-c.stop // RUN)])

    in_threads(work, n)
    counts = np.full(len(runs), float(RUN))
    counts[-1] = n - (len(runs) - 1) * RUN
    means, squares = runs.T
    with np.errstate(invalid="ignore"):  # an inf less an inf
        apart = means - counts @ means / n
        total = squares.sum() + counts @ apart**2
    return torch.tensor(math.sqrt(total / (n - 1)), dtype=torch.float64)
