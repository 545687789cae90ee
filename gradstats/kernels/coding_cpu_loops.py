"""The loops of norms, moments and signs, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_packing import pack_narrow
from gradstats.kernels.coding_cpu_patterns import AS_IT_IS, load
from gradstats.kernels.compiling import jit, jit_sums


@jit
def largest(patterns: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The largest magnitude of every piece, as a pattern."""
    width = patterns.dtype.type
    for p in range(out.size):
        top = width(0)
        part = patterns[p * piece : (p + 1) * piece]
        for i in range(part.size):
            top = max(top, width(width(part[i] << width(1)) >> width(1)))
        out[p] = top


@jit_sums
def squares(values: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The sum of squares of every piece."""
    for p in range(out.size):
        part = values[p * piece : (p + 1) * piece]
        total = 0.0
        for i in range(part.size):
            total += np.float64(part[i]) * np.float64(part[i])
        out[p] = total


@jit_sums
def magnitudes(values: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The sum of magnitudes of every piece."""
    for p in range(out.size):
        part = values[p * piece : (p + 1) * piece]
        total = 0.0
        for i in range(part.size):
            total += abs(np.float64(part[i]))
        out[p] = total


@jit_sums
def _moments_of(x: NDArray[Any]) -> tuple[float, float]:
    """The mean, and the sum of squares of what elements are from it."""
    total, squares = 0.0, 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    mean = total / x.size
    for i in range(x.size):
        apart = np.float64(x[i]) - mean
        squares += apart * apart
    return mean, squares


@jit
def moments(values: NDArray[Any], kind: int, run: int, out: NDArray[Any]) -> None:
    """Mean and squares of every run, see `_moments_of`.

    Args:
        values: floats, or the patterns of 16-bit ones, `[n]`.
        kind: what patterns they are.
        run: number of elements.
        out: float64 `[⌈n/run⌉, 2]`.
    """
    x = np.empty(run, np.float32)
    for i in range(0, values.size, run):
        part = values[i : i + run]
        if kind == AS_IT_IS:  # the second pass finds them in the cache
            out[i // run] = _moments_of(part)
        else:
            load(part, kind, False, x[: part.size])
            out[i // run] = _moments_of(x[: part.size])


@jit_sums
def _signs_of(x: NDArray[Any], out: NDArray[Any]) -> float:
    """The sum of magnitudes; 1 for each that is above 0, or a NaN."""
    total = 0.0
    for i in range(x.size):
        total += abs(np.float64(x[i]))
        out[i] = not x[i] <= np.float32(0)
    return total


@jit
def signs(
    values: NDArray[Any],
    kind: int,
    run: int,
    piece: int,
    sums: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """A bit per element, and the sum of magnitudes of every piece.

    Args:
        values: floats, or the patterns of 16-bit ones, `[n]`.
        kind: what patterns they are.
        run: elements that are handled together, a multiple of 8 and of `piece`, or part of one.
        piece: number of elements.
        sums: float64 `[⌈n/piece⌉]`, to be overwritten.
        out: uint8 `[⌈n/8⌉]`.
    """
    x, bits, step = np.empty(run, np.float32), np.zeros(run, np.uint8), min(run, piece)
    sums[:] = 0
    for i in range(0, values.size, run):
        size = min(run, values.size - i)
        if kind != AS_IT_IS:
            load(values[i : i + size], kind, False, x[:size])
        for j in range(0, size, step):
            end = min(j + step, size)
            if kind == AS_IT_IS:  # what comes from memory is worked on while it comes
                sums[(i + j) // piece] += _signs_of(values[i + j : i + end], bits[j:end])
            else:
                sums[(i + j) // piece] += _signs_of(x[j:end], bits[j:end])
        whole = (size + 7) // 8 * 8
        bits[size:whole] = 0
        pack_narrow(bits[:whole], 1, out[i // 8 : (i + whole) // 8])
