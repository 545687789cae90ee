"""Levels of symbols in numba: by a formula where one gives the same bits, else from a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_patterns import F32, U32, bits_of, float_of
from gradstats.kernels.compiling import jit

U8, I32 = np.uint8, np.int32
FEW = 4  # levels
TABLE, EVEN, MINIFLOAT = range(3)  # kinds of formulas


class Formula(NamedTuple):
    r"""How the level of symbol s of L follows from it, in float32.

    - `EVEN`: :math:`(2s - (L - 1)) / \text{divisor}`;
    - `MINIFLOAT`: the sign of r = s - (L - 1)/2, and the small float whose pattern is ∣r∣.

    Attributes:
        kind: one of the kinds.
        most: L - 1.
        divisor: of evenly spaced levels.
        mantissa: bits of a small float.
        bias: of its exponent.
    """

    kind: int
    most: int
    divisor: float
    mantissa: int
    bias: int


UNKNOWN = Formula(TABLE, 0, 0.0, 0, 0)


@jit
def look_up(symbols: NDArray[Any], book: NDArray[Any], out: NDArray[Any]) -> None:
    """The levels of symbols, from a table."""
    if book.size <= FEW:
        _choose(symbols, book, out)
        return
    for i in range(out.size):
        out[i] = book[symbols[i]]


@jit
def _choose(symbols: NDArray[Any], book: NDArray[Any], out: NDArray[Any]) -> None:
    """As `look_up`, without reading from a table."""
    last = book.size - 1
    a, b, c, d = book[0], book[1], book[min(2, last)], book[min(3, last)]
    for i in range(out.size):
        lower, upper = U8(U8(symbols[i]) & U8(1)), U8(U8(symbols[i]) & U8(2))
        low, high = b if lower else a, d if lower else c
        out[i] = high if upper else low


@jit
def work_out(symbols: NDArray[Any], how: Formula, out: NDArray[Any]) -> None:
    """The levels of symbols, by a formula."""
    if how.kind == EVEN:
        _evenly(symbols, I32(how.most), F32(how.divisor), out)
    else:
        _as_minifloats(symbols, how, out)


@jit
def _evenly(symbols: NDArray[Any], most: int, divisor: float, out: NDArray[Any]) -> None:
    for i in range(out.size):
        twice = I32(I32(symbols[i]) << I32(1))
        out[i] = F32(F32(I32(twice - most)) / divisor)


@jit
def _as_minifloats(symbols: NDArray[Any], how: Formula, out: NDArray[Any]) -> None:
    middle, shift, normal = I32(how.most >> 1), U32(23 - how.mantissa), U32(1 << how.mantissa)
    origin, least = U32((127 - how.bias) << 23), F32(2.0 ** (1 - how.bias - how.mantissa))
    for i in range(out.size):
        rank = I32(I32(symbols[i]) - middle)
        size = U32(abs(rank))
        value = float_of(U32(U32(size << shift) + origin))
        value = F32(F32(I32(size)) * least) if size < normal else value
        out[i] = float_of(U32(bits_of(value) | U32(U32(rank) & U32(0x80000000))))


def formula(levels: NDArray[np.float32]) -> Formula:
    """The formula of levels, float32 `[L]`, strictly rising; or that there is none."""
    return _formula(levels.tobytes())


@lru_cache(maxsize=64)
def _formula(written: bytes) -> Formula:
    levels = np.frombuffer(written, np.float32)
    symbols, values = np.arange(len(levels)).astype(np.uint8), np.empty_like(levels)
    for candidate in _candidates(levels) if 2 <= len(levels) <= 256 else ():
        work_out(symbols, candidate, values)
        if np.array_equal(values, levels):
            return candidate
    return UNKNOWN


def _candidates(levels: NDArray[np.float32]) -> Iterator[Formula]:
    """Formulas that may give these levels."""
    most, largest = len(levels) - 1, float(levels[-1])
    if 0 < largest <= most:
        yield Formula(EVEN, most, float(round(most / largest)), 0, 0)
    fraction, power = math.frexp(levels[most // 2 + 1])  # the least number above 0
    if most % 2 == 0 and fraction == 0.5:
        for mantissa in (1, 2, 3):
            yield Formula(MINIFLOAT, most, 0.0, mantissa, 2 - mantissa - power)
