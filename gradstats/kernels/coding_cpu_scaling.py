"""The loops from elements to multiples of their scales, compiled by numba."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_patterns import (
    F32,
    HALF,
    INFINITY,
    MAGNITUDE,
    U32,
    ZERO,
    bits_of,
    float_of,
)
from gradstats.kernels.compiling import jit, jit_sums

I32, F64 = np.int32, np.float64
GIVEN, LARGEST, L2, POWER, E4M3, RANGE = range(6)  # rules that scales follow
ONE, NAN, INF, MOST = F32(1), F32(np.nan), F32(np.inf), np.finfo(F32).max
LEAST_SCALE, MOST_SCALE = F32(2.0**-100), F32(2.0**100)
E4M3_SMALL, E4M3_EDGE = F32(2.0**14), U32(0x3C800000)  # magic number of 2⁻⁹, and 2⁻⁶


class Scaling(NamedTuple):
    """How buckets get their scales.

    Attributes:
        rule: one of those above.
        bucket: elements that share a scale.
        divisor: of the norm; of E4M3 scales, the unit times the largest level.
        unit: of E4M3 scales.
        power: exponent of the largest level, for powers of two.
    """

    rule: int
    bucket: int
    divisor: Any
    unit: Any
    power: int


@jit
def _largest(x: NDArray[Any], out: NDArray[Any]) -> None:
    """The largest magnitude of every row, as a pattern."""
    for row in range(x.shape[0]):
        top = U32(0)
        for i in range(x.shape[1]):
            top = max(top, U32(bits_of(x[row, i]) & MAGNITUDE))
        out[row] = top


@jit_sums
def _norms(x: NDArray[Any], out: NDArray[Any]) -> None:
    """The Euclidean norm of every row, as float32 holds it."""
    for row in range(x.shape[0]):
        total = 0.0
        for i in range(x.shape[1]):
            total += F64(x[row, i]) * F64(x[row, i])
        norm = np.sqrt(total)
        out[row] = min(norm, F64(MOST)) if norm < np.inf else norm


@jit
def _ranges(x: NDArray[Any], scales: NDArray[Any], offsets: NDArray[Any]) -> Any:
    """Half of the range of every row, its middle, which is subtracted; the largest magnitude."""
    peak = U32(0)
    for row in range(x.shape[0]):
        low, high = I32(0x7FFFFFFF), I32(-0x80000000)
        for i in range(x.shape[1]):  # as integers that are in the order of the floats
            bits = I32(bits_of(x[row, i]))
            key = I32(bits ^ I32(I32(bits >> I32(31)) & I32(0x7FFFFFFF)))
            low, high = min(low, key), max(high, key)
        least, most = _of_key(low), _of_key(high)
        peak = max(peak, U32(bits_of(least) & MAGNITUDE), U32(bits_of(most) & MAGNITUDE))
        if least != least or most != most:
            least = most = NAN
        middle = F32(F32(least * HALF) + F32(most * HALF))
        scales[row], offsets[row] = F32(F32(most * HALF) - F32(least * HALF)), middle
        for i in range(x.shape[1]):
            x[row, i] -= middle
    return peak


@jit
def _of_key(key: Any) -> Any:
    return float_of(U32(I32(key ^ I32(I32(key >> I32(31)) & I32(0x7FFFFFFF)))))


@jit
def _power_codes(
    tops: NDArray[Any], power: int, codes: NDArray[Any], scales: NDArray[Any]
) -> None:
    """E8M0 codes of 2^(⌊log₂ top⌋ - power); 2^(-1 - power) where all is 0."""
    for row in range(tops.size):
        code = I32(I32(tops[row] >> U32(23)) - I32(power))
        code = min(max(code, I32(1)), I32(254))
        code = code if tops[row] else I32(126 - power)
        finite = tops[row] < INFINITY
        codes[row] = code if finite else I32(255)
        scales[row] = float_of(U32(U32(code) << U32(23))) if finite else NAN


@jit
def _e4m3_codes(
    tops: NDArray[Any], how: Scaling, codes: NDArray[Any], scales: NDArray[Any]
) -> None:
    """E4M3 codes of top / divisor, which are at most 448."""
    for row in range(tops.size):
        number = F32(float_of(tops[row]) / how.divisor)
        bits = bits_of(number)
        code = U32(U32(bits + U32(0x7FFFF) + (U32(bits >> U32(20)) & U32(1))) >> U32(20))
        small = U32(bits_of(F32(number + E4M3_SMALL)) - bits_of(E4M3_SMALL))
        code = small if bits < E4M3_EDGE else U32(code - U32(120 << 3))
        code = min(code, U32(0x7E)) if number == number else U32(0x7F)
        codes[row] = code
        normal = float_of(U32(U32(code << U32(20)) + U32(120 << 23)))
        level = normal if code >= U32(8) else F32(F32(I32(code)) * F32(2.0**-9))
        scales[row] = F32(level * how.unit) if code < U32(0x7F) else NAN


@jit
def scale_rows(
    x: NDArray[Any], how: Scaling, given: NDArray[Any], offsets: NDArray[Any], scales: NDArray[Any]
) -> Any:
    """Scales of rows, which are written to `given` in their own format; the largest magnitude."""
    peak = U32(0)
    if how.rule == RANGE:
        peak = _ranges(x, scales, offsets)
    elif how.rule == L2:
        _norms(x, scales)
    else:
        tops = np.empty(x.shape[0], np.uint32)
        _largest(x, tops)
        for row in range(tops.size):
            peak = max(peak, tops[row])
        if how.rule == POWER:
            _power_codes(tops, how.power, given, scales)
            return peak
        if how.rule == E4M3:
            _e4m3_codes(tops, how, given, scales)
            return peak
        for row in range(tops.size):
            scales[row] = F32(float_of(tops[row]) / how.divisor)
    given[:] = scales
    return peak


@jit
def _invert(scales: NDArray[Any], inverse: NDArray[Any]) -> Any:
    """1 / scale, 0 for 0; whether a scale is near the ends of float32."""
    extremes = U32(0)
    for row in range(scales.size):
        scale = scales[row]
        inverse[row] = ZERO if scale == ZERO else F32(ONE / scale)
        inside = (scale <= MOST_SCALE) & (scale >= LEAST_SCALE)
        odd = (scale == ZERO) | (scale != scale) | (scale == INF)
        extremes = U32(extremes + U32(1 - (inside | odd)))
    return extremes


@jit
def _spread(x: NDArray[Any], scales: NDArray[Any], offset: int, bucket: int) -> None:
    """Divide by scales, some of which have no reciprocal in float32."""
    i = 0
    for scale in scales:
        end = min(x.size, i + bucket - offset)
        part, i, offset = x[i:end], end, 0
        one = ZERO if scale == ZERO else F32(ONE / scale)
        if (scale < LEAST_SCALE or scale > MOST_SCALE) and scale > ZERO and scale < INF:
            _, exponent = math.frexp(scale)
            first = F32(2.0 ** (-exponent // 2))
            second = F32(2.0 ** (-exponent - -exponent // 2))
            one = F32(ONE / F32(F32(scale * first) * second))
            for j in range(part.size):
                part[j] = F32(part[j] * first) * second
        for j in range(part.size):
            part[j] *= one


@jit
def divide(x: NDArray[Any], scales: NDArray[Any], offset: int, bucket: int) -> None:
    """Divide by the scales of buckets, of which the first begins `offset` elements before."""
    inverse = np.empty(scales.size, F32)
    if _invert(scales, inverse):
        _spread(x, scales, offset, bucket)
    else:
        multiply(x, inverse, offset, bucket)


@jit
def multiply(values: NDArray[Any], factors: NDArray[Any], offset: int, bucket: int) -> None:
    """Multiply by the factors of buckets, of which the first begins `offset` elements before."""
    i = 0 if offset else values.size // bucket * bucket
    rows = values[:i].reshape(-1, bucket)
    for row in range(rows.shape[0]):  # of equal length, which costs less
        factor = factors[row]
        for j in range(rows.shape[1]):
            rows[row, j] *= factor
    for factor in factors[i // bucket :]:
        end = min(values.size, i + bucket - offset)
        part, i, offset = values[i:end], end, 0
        for j in range(part.size):
            part[j] *= factor
