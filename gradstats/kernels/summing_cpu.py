"""The sum of the magnitudes of a vector in numba, where nothing else of its counts is needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from gradstats.kernels import counting_cpu_loops as loops
from gradstats.kernels.counting_cpu import _keys, _patterns
from gradstats.kernels.counting_cpu_loops import BLOCK
from gradstats.kernels.grid import GRIDS, Magnitudes
from gradstats.kernels.threads import CHUNK, in_threads


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
