"""Loops at memory speed: counting, selecting, coding, rotating, comparing and entropy coding.

Six jobs in up to three forms, and a file is named by both: `counting_`, `selecting_`, `coding_`,
`rotating_`, `comparing_` or `ans_` and `eager` (torch on any device, or numpy: the readable
definition), `cpu` (numba) or `cuda` (triton). The functions of this package, of `coding`,
`rotating` and `ans` choose a form by device, unless `use("eager")` overrides it. All forms return
identical counts, selected sets and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels import comparing_eager, counting_eager, selecting_eager
from gradstats.kernels.comparing_eager import Products
from gradstats.kernels.forms import FORMS, in_numba, in_triton, use
from gradstats.kernels.grid import Magnitudes, Tally

__all__ = [
    "FORMS",
    "Magnitudes",
    "Products",
    "Tally",
    "compact",
    "compact_sum",
    "count",
    "count_segments",
    "deviation",
    "largest",
    "largest_of_sum",
    "products",
    "subtract_at",
    "sum_magnitudes",
    "use",
]


def count(values: Tensor) -> Tally:
    """Count a vector on its dtype's log grid and sum it, in one pass.

    Args:
        values: `[n]`, contiguous, floating point, any device.
    """
    if in_numba(values):
        from gradstats.kernels import counting_cpu

        return counting_cpu.count(values)
    if in_triton(values):
        from gradstats.kernels import counting_cuda

        return counting_cuda.count(values)
    return counting_eager.count(values)


def sum_magnitudes(values: Tensor) -> Magnitudes | None:
    """Sum the magnitudes of a vector, as `count` does but without its counts.

    Args:
        values: as in `count`.

    Returns:
        The sum, or None where only `count` has it: where an element is not finite or there is
        none, for 16-bit dtypes, and on devices.
    """
    if not in_numba(values):
        return None
    from gradstats.kernels import summing_cpu

    return summing_cpu.sum_magnitudes(values)


def deviation(values: Tensor) -> Tensor:
    r"""Compute the standard deviation :math:`\sqrt{\sum_i (x_i - \bar x)^2 / (n - 1)}`.

    Args:
        values: as in `count`, two or more.

    Returns:
        Float64 `[]`, on their device; NaN if an element is not finite.
    """
    if not in_numba(values) or values.dtype == torch.float64:
        return values.double().std()
    from gradstats.kernels import summing_cpu

    return summing_cpu.deviation(values)


def count_segments(values: Tensor, ends: NDArray[np.int64]) -> Iterator[Tally]:
    """Count each segment of a vector as `count` would; short segments cost little.

    Args:
        values: as in `count`.
        ends: `[segments + 1]`, from 0 to n: segment i is `values[ends[i] : ends[i + 1]]`.
    """
    if in_numba(values):
        from gradstats.kernels import counting_cpu

        return counting_cpu.count_segments(values, ends)
    return (count(values[start:end]) for start, end in pairwise(ends.tolist()))


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Select the elements with |value| > threshold and every NaN, in one pass.

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
    _check_threshold(threshold)
    if in_numba(values):
        from gradstats.kernels import selecting_cpu

        return selecting_cpu.compact(values, threshold)
    if in_triton(values):
        from gradstats.kernels import selecting_cuda

        return selecting_cuda.compact(values, threshold)
    return selecting_eager.compact(values, threshold)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Select the k largest magnitudes exactly; of equal ones the first, and NaN as the largest.

    Args:
        values: `[n]`, contiguous, floating point, any device.
        k: number of elements to select; all if there are fewer.

    Returns:
        Indices, int64 `[min(k, n)]`, rising, and the elements there.
    """
    if in_numba(values):
        from gradstats.kernels import selecting_cpu

        return selecting_cpu.largest(values, k)
    if in_triton(values):
        from gradstats.kernels import selecting_cuda

        return selecting_cuda.largest(values, k)
    return selecting_eager.largest(values, k)


def compact_sum(
    first: Tensor, second: Tensor, total: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Add two vectors, and select from the sum as `compact` does, in one pass.

    Args:
        first: `[n]`, contiguous, of 32 or 64 bits, any device.
        second: like `first`.
        total: like `first`, into which the sum is written; `first` itself, or memory of its own.
        threshold: as in `compact`.

    Returns:
        As `compact`.

    Raises:
        ValueError: the threshold is negative or NaN.
    """
    _check_threshold(threshold)
    if in_numba(total):
        from gradstats.kernels import selecting_cpu

        return selecting_cpu.compact_sum(first, second, total, threshold)
    return compact(torch.add(first, second, out=total), threshold)


def largest_of_sum(first: Tensor, second: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Add two vectors, and select from the sum as `largest` does, in one pass.

    Args:
        first: as in `compact_sum`.
        second: as in `compact_sum`.
        total: as in `compact_sum`.
        k: as in `largest`.

    Returns:
        As `largest`.
    """
    if in_numba(total):
        from gradstats.kernels import selecting_cpu

        return selecting_cpu.largest_of_sum(first, second, total, k)
    return largest(torch.add(first, second, out=total), k)


def subtract_at(residual: Tensor, indices: Tensor, sent: Tensor) -> None:
    """Subtract what was sent at some indices; where it is not finite, 0 is left.

    Args:
        residual: `[n]`, floating point, any device; changed in place.
        indices: int64 `[k]`, in [0, n), without repetition.
        sent: `[k]`, floating point.

    Raises:
        IndexError: an index outside [0, n).
    """
    wide = residual.dtype.itemsize > 2 and residual.dtype == sent.dtype
    if wide and in_numba(residual) and residual.is_contiguous():
        from gradstats.kernels import selecting_cpu

        return selecting_cpu.subtract_at(residual, indices, sent)
    selecting_eager.subtract_at(residual, indices, sent)


def products(grad: Tensor, update: Tensor, compensated: Tensor, residual: Tensor) -> Products:
    """Sum the products that tell a gradient from its update, in float64 and in one pass.

    Args:
        grad: g, `[n]`, contiguous, float32 or float64, any device.
        update: ĝ, in the same form.
        compensated: v, in the same form.
        residual: e, in the same form.
    """
    if in_numba(grad):
        from gradstats.kernels import comparing_cpu

        return comparing_cpu.products(grad, update, compensated, residual)
    return comparing_eager.products(grad, update, compensated, residual)


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
