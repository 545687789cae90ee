"""The loops of `rotating_cpu`, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.counting_cpu_loops import jit

U32, U64 = np.uint32, np.uint64
LOW = U64(0xFFFFFFFF)


@jit
def draw(key0: int, key1: int, counter: int, out: NDArray[Any]) -> None:
    """Philox-4x32-10 from a counter on."""
    for i in range(out.size // 4):
        c0, c1, c2, c3 = U64(counter + i) & LOW, U64(0), U64(0), U64(0)
        k0, k1 = U64(key0), U64(key1)
        for _ in range(10):
            p0 = c0 * U64(0xD2511F53)
            p1 = c2 * U64(0xCD9E8D57)
            c0 = (p1 >> U64(32)) ^ c1 ^ k0
            c1 = p1 & LOW
            c2 = (p0 >> U64(32)) ^ c3 ^ k1
            c3 = p0 & LOW
            k0 = (k0 + U64(0x9E3779B9)) & LOW
            k1 = (k1 + U64(0xBB67AE85)) & LOW
        out[4 * i] = c0
        out[4 * i + 1] = c1
        out[4 * i + 2] = c2
        out[4 * i + 3] = c3


@jit
def _flip(
    values: NDArray[Any], offset: int, key0: int, key1: int, factor: float, out: NDArray[Any]
) -> None:
    """Multiply by a factor and by random signs, a bit each."""
    words = np.empty(4, np.uint32)
    one = np.float32(factor)
    for start in range(0, values.size, 128):
        draw(key0, key1, (offset + start) // 128, words)
        for i in range(start, min(start + 128, values.size)):
            bit = (words[(i - start) >> 5] >> U32((i - start) & 31)) & U32(1)
            out[i] = -values[i] * one if bit else values[i] * one


@jit
def rotate(
    values: NDArray[Any], offset: int, block: int, key0: int, key1: int, out: NDArray[Any]
) -> None:
    """Signs, then the transform of every block."""
    _flip(values, offset, key0, key1, 1 / np.sqrt(block), out)
    out[values.size :] = 0
    for start in range(0, out.size, block):
        hadamard(out[start : start + block])


@jit
def unrotate(
    rotated: NDArray[Any], offset: int, block: int, key0: int, key1: int, out: NDArray[Any]
) -> None:
    """The transform of every block, then signs."""
    out[:] = rotated
    for start in range(0, out.size, block):
        hadamard(out[start : start + block])
    _flip(out, offset, key0, key1, 1 / np.sqrt(block), out)


@jit
def hadamard(x: NDArray[Any]) -> None:
    """The Walsh-Hadamard transform in place, without its factor 1/√B."""
    step = 1
    while step < x.size:
        for start in range(0, x.size, 2 * step):
            low, high = x[start : start + step], x[start + step : start + 2 * step]
            for i in range(step):
                a, b = low[i], high[i]
                low[i] = a + b
                high[i] = a - b
        step *= 2
