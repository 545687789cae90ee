"""The loops from scaled elements to symbols, compiled by numba; see `coding_cpu_scaling`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_patterns import (
    F32,
    INFINITY,
    MAGNITUDE,
    U32,
    ZERO,
    bits_of,
    float_of,
)
from gradstats.kernels.compiling import jit

U8, I32, U64, F64 = np.uint8, np.int32, np.uint64, np.float64
ONE = F32(1)
TABLE, FEW, FLOATS, EVEN = range(4)  # ways to find a symbol
LOW, UNIT, TO_WORDS = U64(0xFFFFFFFF), F32(2.0**-24), 2.0**32


class Finder(NamedTuple):
    """How the symbol of a scaled element is found.

    Attributes:
        kind: TABLE, FEW boundaries, FLOATS of a small format, or EVEN distances.
        stochastic: whether the level above is taken at random.
        middle: symbol of a NaN.
        first: int32 `[65536]`, see `coding_cpu.Steps`.
        bounds: float32 `[m]`; filled up with infinity to a multiple of 4 if they are FEW.
        levels: float64 `[L]`.
        gaps: float64 `[L - 1]`, 1 / distance of two levels.
        steps: of EVEN levels on each side of 0.
        format: of FLOATS, uint32: shift, half, base, magic number, least normal number, top.
        key: of the random numbers.
    """

    kind: int
    stochastic: bool
    middle: int
    first: NDArray[np.int32]
    bounds: NDArray[np.float32]
    levels: NDArray[np.float64]
    gaps: NDArray[np.float64]
    steps: Any
    format: NDArray[np.uint32]
    key: NDArray[np.uint32]


@jit
def _mix(c: Any, key0: Any, key1: Any, turn: Any) -> Any:
    """One round of Philox."""
    p0, p1 = c[0] * U64(0xD2511F53), c[2] * U64(0xCD9E8D57)
    k0, k1 = key0 + turn * U64(0x9E3779B9), key1 + turn * U64(0xBB67AE85)
    return (
        (p1 >> U64(32)) ^ c[1] ^ (k0 & LOW),
        p1 & LOW,
        (p0 >> U64(32)) ^ c[3] ^ (k1 & LOW),
        p0 & LOW,
    )


@jit
def _mix_5(c: Any, key0: Any, key1: Any, turn: Any) -> Any:
    """Five rounds."""
    c = _mix(_mix(c, key0, key1, turn), key0, key1, turn + U64(1))
    c = _mix(_mix(c, key0, key1, turn + U64(2)), key0, key1, turn + U64(3))
    return _mix(c, key0, key1, turn + U64(4))


@jit
def draw(key0: int, key1: int, counter: int, out: NDArray[Any]) -> None:
    """Philox-4x32-10 from a counter on: four words for each."""
    first, second = U64(key0), U64(key1)
    for i in range(out.size // 4):  # no loop over rounds, so that this one becomes lanes
        c = _mix_5((U64(counter + i) & LOW, U64(0), U64(0), U64(0)), first, second, U64(0))
        c, index = _mix_5(c, first, second, U64(5)), U64(4) * U64(i)
        out[index], out[index + U64(1)] = c[0], c[1]
        out[index + U64(2)], out[index + U64(3)] = c[2], c[3]


@jit
def _find_few(y: NDArray[Any], bounds: NDArray[Any], middle: int, out: NDArray[Any]) -> None:
    """Count the boundaries below each y, four at a time."""
    for j in range(0, bounds.size, 4):
        a, b, c, d = bounds[j], bounds[j + 1], bounds[j + 2], bounds[j + 3]
        first = j == 0
        for i in range(y.size):
            v = y[i]
            above = U8(U8(v > a) + U8(v > b)) + U8(U8(v > c) + U8(v > d))
            held = U8(middle) if v != v else U8(0)
            out[i] = U8(above + (held if first else out[i]))


@jit
def _find_floats(y: NDArray[Any], format: NDArray[Any], middle: int, out: NDArray[Any]) -> None:
    """Round to a small float, ties to even: cut the pattern, or add to a magic number."""
    shift, half, base, edge, top = format[0], format[1], format[2], format[4], format[5]
    shift = U32(shift & U32(31))
    magic, center = float_of(format[3]), I32(middle)
    for i in range(y.size):
        bits = bits_of(y[i])
        size = U32(bits & MAGNITUDE)
        even = U32(U32(size >> shift) & U32(1))
        normal = U32(U32(U32(U32(size + half) + even) >> shift) - base)
        small = U32(bits_of(F32(float_of(size) + magic)) - bits_of(magic))
        code = normal if size >= edge else small
        code = min(code, top)
        code = U32(0) if size > INFINITY else code
        signed = I32(-I32(code)) if bits > MAGNITUDE else I32(code)
        out[i] = I32(center + signed)


@jit
def _find_even(
    y: NDArray[Any], steps: Any, drawn: NDArray[Any], doubt: NDArray[Any], out: NDArray[Any]
) -> None:
    """Multiply, and round at random if words are `drawn`; mark what float32 cannot decide."""
    near, far = F32((steps + ONE) * F32(2.0**-20)), F32(ONE - (steps + ONE) * F32(2.0**-20))
    shift = steps if drawn.size else F32(steps + F32(0.5))
    for i in range(y.size):
        v = y[i]
        inside = v if v < ONE else ONE
        inside = inside if inside > -ONE else -ONE
        t = F32(F32(inside * steps) + shift)
        below = I32(t)
        part = F32(t - F32(below))
        unsure = (part < near) | (part > far)
        if drawn.size:
            number = F32(F32(I32(U32(U32(drawn[i]) >> U32(8)))) * UNIT)
            unsure = unsure | (abs(F32(number - part)) < near)
            below = I32(below + I32(number < part))
        unsure = (unsure & (v != ZERO) & (v < ONE) & (v > -ONE)) | (v != v)
        doubt[i] = unsure
        out[i] = below


@jit
def _settle(
    y: NDArray[Any], find: Finder, drawn: NDArray[Any], doubt: NDArray[Any], out: NDArray[Any]
) -> None:
    """Find the symbols that are in doubt by the definition."""
    eights = doubt.view(np.uint64)
    for group in range(eights.size):
        if not eights[group]:
            continue
        for i in range(8 * group, min(8 * group + 8, y.size)):
            if doubt[i] and y[i] != y[i]:
                out[i] = find.middle
            elif doubt[i]:
                symbol = np.searchsorted(find.bounds, y[i])
                if find.stochastic:
                    share = (F64(y[i]) - find.levels[symbol]) * find.gaps[symbol]
                    symbol += F64(drawn[i]) < share * TO_WORDS
                out[i] = symbol


@jit
def _find_in_table(
    y: NDArray[Any], find: Finder, drawn: NDArray[Any], symbols: NDArray[Any]
) -> None:
    """Count the boundaries that are below each y; then go up at random."""
    heads, first, bounds = y.view(np.uint16)[1::2], find.first, find.bounds
    last = bounds.size
    for i in range(y.size):
        symbol = np.int64(first[heads[i]])
        if symbol < 0:  # there is a boundary among the floats that begin so
            symbol = ~symbol if y[i] == y[i] else np.int64(find.middle)
            while symbol < last and bounds[symbol] < y[i]:
                symbol += 1
        symbols[i] = symbol
    if find.stochastic:
        levels, gaps = find.levels, find.gaps
        for i in range(y.size):  # no word is below the share of a NaN
            below = symbols[i]
            share = (F64(y[i]) - levels[below]) * gaps[below]
            symbols[i] = I32(below) + I32(F64(drawn[i]) < share * TO_WORDS)


@jit
def find(
    y: NDArray[Any], how: Finder, counter: int, words: NDArray[Any], symbols: NDArray[Any]
) -> None:
    """The symbols of a run, whose random numbers begin at a counter."""
    drawn = words[: y.size if how.stochastic else 0]
    draw(how.key[0], how.key[1], counter, words[: (drawn.size + 3) // 4 * 4])
    if how.kind == FEW:
        _find_few(y, how.bounds, how.middle, symbols)
    elif how.kind == FLOATS:
        _find_floats(y, how.format, how.middle, symbols)
    elif how.kind == EVEN:
        doubt = np.zeros((y.size + 7) // 8 * 8, np.uint8)
        _find_even(y, how.steps, drawn, doubt, symbols)
        _settle(y, how, drawn, doubt, symbols)
    else:
        _find_in_table(y, how, drawn, symbols)
