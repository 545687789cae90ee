"""The few loops that run at memory speed.

The same functions stand in `eager` (torch, any device: the readable definition), in `cpu` (numba)
and in `cuda` (triton); those here pick by device. All return identical counts and identical
selected sets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import eager
from gradstats.kernels.grid import Tally

__all__ = ["Tally", "count", "count_segments", "select"]

HAVE_NUMBA = importlib.util.find_spec("numba") is not None
HAVE_TRITON = importlib.util.find_spec("triton") is not None


def count(values: Tensor) -> Tally:
    """Count a vector on its dtype's log grid and sum it, in one pass.

    Args:
        values: `[n]`, contiguous, floating point, any device.
    """
    if HAVE_NUMBA and values.device.type == "cpu":
        from gradstats.kernels import cpu

        return cpu.count(values)
    if HAVE_TRITON and values.is_cuda:
        from gradstats.kernels import cuda

        return cuda.count(values)
    return eager.count(values)


def count_segments(values: Tensor, ends: NDArray[np.int64]) -> Iterator[Tally]:
    """Count each segment of a vector as `count` would, short ones at little more than their share.

    Args:
        values: as in `count`.
        ends: `[segments + 1]`, from 0 to n: segment i is `values[ends[i] : ends[i + 1]]`.
    """
    if HAVE_NUMBA and values.device.type == "cpu":
        from gradstats.kernels import cpu

        return cpu.count_segments(values, ends)
    return (count(values[start:end]) for start, end in pairwise(ends.tolist()))


def select(values: Tensor, threshold: float) -> Tensor:
    """Indices of the elements with |value| > threshold, and of every NaN, in increasing order.

    A NaN is selected so that a sparsifier delivers it, as a dense all-reduce would, instead of
    hiding it.

    Args:
        values: `[n]`, contiguous, floating point, any device.
        threshold: in the unit of `values`; compared as a real number, not rounded to their dtype.

    Returns:
        int64 `[k]`.
    """
    if HAVE_NUMBA and values.device.type == "cpu" and values.dtype.itemsize >= 4:
        from gradstats.kernels import cpu

        return cpu.select(values, threshold)
    if HAVE_TRITON and values.is_cuda:
        from gradstats.kernels import cuda

        return cuda.select(values, threshold)
    return eager.select(values, threshold)
