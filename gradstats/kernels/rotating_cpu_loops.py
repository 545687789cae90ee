"""The loops of `rotating_cpu`, compiled by numba.

A block of 4,096 is a matrix of 64 rows of 64: the first six steps of its transform are between the
rows of its transpose, the others between its own rows, so that all of them run along rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit

F32, F64, U32, U64 = np.float32, np.float64, np.uint32, np.uint64
ONE = U64(1)
SIDE = 64
SQUARE = SIDE * SIDE


class Place(NamedTuple):
    """Whose blocks these are.

    Attributes:
        first: index of the first element, a multiple of 128.
        block: B.
        key: uint32 `[2]`, of the signs.
    """

    first: int
    block: int
    key: NDArray[np.uint32]


@jit
def _draw_signs(place: Place, start: int, signs: NDArray[Any]) -> None:
    """Philox-4x32-10 of successive counters: their four words are columns of `signs`."""
    counter, key0, key1 = (place.first + start) // 128, place.key[0], place.key[1]
    first, second, third, fourth = signs[0], signs[1], signs[2], signs[3]
    for i in range(first.size):
        c0, c1, c2, c3, k0, k1 = U32(counter + i), U32(0), U32(0), U32(0), key0, key1
        for _ in range(10):
            p0, p1 = U64(c0) * U64(0xD2511F53), U64(c2) * U64(0xCD9E8D57)
            c0, c1 = U32(p1 >> U64(32)) ^ c1 ^ k0, U32(p1)
            c2, c3 = U32(p0 >> U64(32)) ^ c3 ^ k1, U32(p0)
            k0, k1 = U32(k0 + U32(0x9E3779B9)), U32(k1 + U32(0xBB67AE85))
        first[i], second[i], third[i], fourth[i] = c0, c1, c2, c3


@jit
def _flip(values: NDArray[Any], signs: NDArray[Any], out: NDArray[Any]) -> None:
    """Apply random signs, a bit each."""
    for start in range(0, values.size, 64):
        word, draw = start // 32 % 4, start // 128
        bits = U64(signs[word, draw]) | U64(signs[word + 1, draw]) << U64(32)
        x, y = values[start : start + 64], out[start : start + 64]
        for i in range(x.size):
            y[i] = -x[i] if (bits >> U64(i)) & ONE else x[i]


@jit
def _transpose(x: NDArray[Any], out: NDArray[Any]) -> None:
    """Two rows at a time, whose elements are neighbours in the columns."""
    columns, patterns = out.view(np.uint64).reshape(SIDE, SIDE // 2), x.view(np.uint32)
    for pair in range(SIDE // 2):
        start = 2 * pair * SIDE
        one, two = patterns[start : start + SIDE], patterns[start + SIDE : start + 2 * SIDE]
        for i in range(SIDE):
            columns[i, pair] = U64(one[i]) | U64(two[i]) << U64(32)


def _three_steps(step: int) -> Any:
    """Three steps between each eight rows of `step` elements, and a factor.

    The distance is a constant to the compiler: so it knows that no row reaches into the next.
    """
    s1, s2, s3, s4, s5, s6, s7 = (U64(i * step) for i in range(1, 8))

    @jit
    def loop(x: NDArray[Any], start: int, factor: float) -> None:
        for j in range(step):
            i = U64(start) + U64(j)
            a, b, c, d = x[i], x[i + s1], x[i + s2], x[i + s3]
            e, f, g, h = x[i + s4], x[i + s5], x[i + s6], x[i + s7]
            a, b, c, d = a + b, a - b, c + d, c - d
            e, f, g, h = e + f, e - f, g + h, g - h
            a, b, c, d = a + c, b + d, a - c, b - d
            e, f, g, h = e + g, f + h, e - g, f - h
            x[i], x[i + s1] = (a + e) * factor, (b + f) * factor
            x[i + s2], x[i + s3] = (c + g) * factor, (d + h) * factor
            x[i + s4], x[i + s5] = (a - e) * factor, (b - f) * factor
            x[i + s6], x[i + s7] = (c - g) * factor, (d - h) * factor

    return loop


_near, _far = _three_steps(SIDE), _three_steps(8 * SIDE)


@jit
def _between_rows(x: NDArray[Any], factor: float) -> None:
    """Six steps between the rows of a square."""
    for start in range(0, SQUARE, 8 * SIDE):
        _near(x, start, F32(1))
    _far(x, 0, factor)


@jit
def _one_step(low: NDArray[Any], high: NDArray[Any]) -> None:
    for i in range(low.size):
        a, b = low[i], high[i]
        low[i] = a + b
        high[i] = a - b


@jit
def hadamard(x: NDArray[Any], spare: NDArray[Any]) -> None:
    """The orthonormal Walsh-Hadamard transform in place."""
    factor = F32(1 / np.sqrt(F64(x.size)))
    if x.size == SQUARE:
        _transpose(x, spare)
        _between_rows(spare, F32(1))
        _transpose(spare, x)
        _between_rows(x, factor)
        return
    step = 1
    while step < x.size:
        for start in range(0, x.size, 2 * step):
            _one_step(x[start : start + step], x[start + step : start + 2 * step])
        step *= 2
    for i in range(x.size):
        x[i] *= factor


@jit
def _transform(x: NDArray[Any], block: int, spare: NDArray[Any]) -> None:
    for start in range(0, x.size, block):
        hadamard(x[start : start + block], spare)


@jit
def rotate(values: NDArray[Any], place: Place, out: NDArray[Any]) -> None:
    """Signs, then the transform of every block."""
    piece = max(place.block, SQUARE)
    signs, spare = np.empty((4, piece // 128), np.uint32), np.empty(SQUARE, np.float32)
    for start in range(0, out.size, piece):
        x, y = values[start : start + piece], out[start : start + piece]
        _draw_signs(place, start, signs)
        _flip(x, signs, y)
        y[x.size :] = 0
        _transform(y, place.block, spare)


@jit
def unrotate(rotated: NDArray[Any], place: Place, weight: float, out: NDArray[Any]) -> None:
    """The transform of every block, then signs; added to `out`, unless the weight is 0."""
    piece = max(place.block, SQUARE)
    signs, spare = np.empty((4, piece // 128), np.uint32), np.empty(SQUARE, np.float32)
    turned, added = np.empty(piece, np.float32), np.empty(piece, np.float32)
    for start in range(0, out.size, piece):
        x, y = rotated[start : start + piece], out[start : start + piece]
        turned[: x.size] = x
        _transform(turned[: x.size], place.block, spare)
        _draw_signs(place, start, signs)
        if weight:
            _flip(turned[: y.size], signs, added[: y.size])
            _add(added[: y.size], weight, y)
        else:
            _flip(turned[: y.size], signs, y)


@jit
def _add(x: NDArray[Any], weight: float, out: NDArray[Any]) -> None:
    for i in range(x.size):
        out[i] += weight * x[i]
