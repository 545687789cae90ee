"""The few loops that run at memory speed.

The same functions stand in `eager` (torch, any device: the readable definition), in `cpu` and
`cpu_selection` (numba), and in `cuda` and `cuda_selection` (triton); those here pick by device,
unless `use("eager")` says otherwise. All return identical counts and identical selected sets.
Those that quantise and pack are in `codes`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import eager
from gradstats.kernels.grid import Tally

__all__ = ["FORMS", "Tally", "compact", "count", "count_segments", "largest", "use"]

HAVE_NUMBA = importlib.util.find_spec("numba") is not None
HAVE_TRITON = importlib.util.find_spec("triton") is not None
FORMS = ("auto", "eager")
_form = ContextVar("form", default="auto")


@contextmanager
def use(form: str) -> Iterator[None]:
    """Run what is inside with the kernels in one form.

    Args:
        form: "eager", the plain torch that defines them, or "auto", the fastest for the device.

    Raises:
        ValueError: another form.

    Example:
        >>> import torch
        >>> with use("eager"):
        ...     indices, values = largest(torch.tensor([1.0, -3.0, 2.0]), 2)
        >>> indices.tolist()
        [1, 2]
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    before = _form.set(form)
    try:
        yield
    finally:
        _form.reset(before)


def in_numba(values: Tensor) -> bool:
    """Whether the kernels in numba are to be used for a tensor."""
    return HAVE_NUMBA and values.device.type == "cpu" and _form.get() == "auto"


def in_triton(values: Tensor) -> bool:
    """Whether the kernels in triton are to be used for a tensor."""
    return HAVE_TRITON and values.is_cuda and _form.get() == "auto"


def count(values: Tensor) -> Tally:
    """Count a vector on its dtype's log grid and sum it, in one pass.

    Args:
        values: `[n]`, contiguous, floating point, any device.
    """
    if in_numba(values):
        from gradstats.kernels import cpu

        return cpu.count(values)
    if in_triton(values):
        from gradstats.kernels import cuda

        return cuda.count(values)
    return eager.count(values)


def count_segments(values: Tensor, ends: NDArray[np.int64]) -> Iterator[Tally]:
    """Count each segment of a vector as `count` would, short ones at little more than their share.

    Args:
        values: as in `count`.
        ends: `[segments + 1]`, from 0 to n: segment i is `values[ends[i] : ends[i + 1]]`.
    """
    if in_numba(values):
        from gradstats.kernels import cpu

        return cpu.count_segments(values, ends)
    return (count(values[start:end]) for start, end in pairwise(ends.tolist()))


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The elements with |value| > threshold and every NaN, in one pass.

    A NaN is selected so that a sparsifier delivers it, as a dense all-reduce would, instead of
    hiding it.

    Args:
        values: `[n]`, contiguous, floating point, any device.
        threshold: in the unit of `values`; compared as a real number, not rounded to their dtype.

    Returns:
        Indices, int64 `[k]`, rising, and the elements there, `[k]`.

    Raises:
        ValueError: the threshold is negative or NaN.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    if in_numba(values):
        from gradstats.kernels import cpu_selection

        return cpu_selection.compact(values, threshold)
    if in_triton(values):
        from gradstats.kernels import cuda

        return cuda.compact(values, threshold)
    return eager.compact(values, threshold)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest magnitudes exactly; of equal ones the first, and NaN counts as the largest.

    Args:
        values: `[n]`, contiguous, floating point, any device.
        k: how many; all where there are fewer.

    Returns:
        Indices, int64 `[min(k, n)]`, rising, and the elements there.
    """
    if in_numba(values):
        from gradstats.kernels import cpu_selection

        return cpu_selection.largest(values, k)
    if in_triton(values):
        from gradstats.kernels import cuda_selection

        return cuda_selection.largest(values, k)
    return eager.largest(values, k)
