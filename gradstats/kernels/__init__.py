"""The few loops that run at memory speed.

The same functions stand in `eager` (torch, any device: the readable definition), in `cpu` (numba)
and in `cuda` (triton); `count` and `select` pick by device. All return identical counts and
identical selected sets.
"""

from __future__ import annotations

import importlib.util

from torch import Tensor

from gradstats.kernels import eager
from gradstats.kernels.grid import Tally

__all__ = ["Tally", "count", "select"]

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
