"""The patterns of floats in numba, and 16-bit floats, which numba does not know.

Loops of `coding_cpu_*` see a run of some thousand elements, which stays in the cache. They are
written for vector lanes: contiguous arrays, no branch or division in an innermost loop, and
integers cast back to 32 bits after every operation, as numba doubles their width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit

U32, F32 = np.uint32, np.float32
AS_IT_IS, BFLOAT16, FLOAT16 = range(3)  # kinds of patterns
MAGNITUDE, INFINITY = U32(0x7FFFFFFF), U32(0x7F800000)
ZERO, HALF, SMALLEST_HALF = F32(0), F32(0.5), F32(2.0**-14)  # the last: of normal float16


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """The pattern of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


@intrinsic
def float_of(typing: Any, pattern: Any) -> Any:
    """The float32 of a pattern."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build


@jit
def load(values: NDArray[Any], kind: int, repeat: bool, x: NDArray[Any]) -> None:
    """Widen elements to float32; fill up with 0, or repeat the last one."""
    size = values.size
    if kind == AS_IT_IS:
        for i in range(size):
            x[i] = F32(values[i])
    elif kind == BFLOAT16:
        for i in range(size):
            x[i] = float_of(U32(U32(values[i]) << U32(16)))
    else:
        for i in range(size):
            half = U32(values[i])
            shifted = U32(U32(half & U32(0x7FFF)) << U32(13))
            wide = U32(shifted + U32(0x38000000))
            wide = U32(wide + U32(0x38000000)) if shifted >= U32(0x0F800000) else wide
            small = bits_of(F32(float_of(U32(shifted | U32(0x38800000))) - SMALLEST_HALF))
            wide = small if shifted < U32(0x00800000) else wide
            x[i] = float_of(U32(wide | U32(U32(half & U32(0x8000)) << U32(16))))
    x[size:] = x[size - 1] if repeat else ZERO


@jit
def store(values: NDArray[Any], kind: int, out: NDArray[Any]) -> None:
    """Round to the patterns of 16-bit floats, ties to even."""
    if kind == BFLOAT16:
        for i in range(values.size):
            bits = bits_of(values[i])
            even = U32(U32(bits >> U32(16)) & U32(1))
            rounded = U32(U32(U32(bits + U32(0x7FFF)) + even) >> U32(16))
            out[i] = U32(0x7FC0) if values[i] != values[i] else rounded
    else:
        for i in range(values.size):
            bits = bits_of(values[i])
            size, sign = U32(bits & MAGNITUDE), U32(U32(bits >> U32(16)) & U32(0x8000))
            even = U32(U32(size >> U32(13)) & U32(1))
            rounded = U32(U32(U32(U32(size + U32(0xFFF)) + even) >> U32(13)) - U32(112 << 10))
            small = U32(bits_of(F32(float_of(size) + HALF)) - bits_of(HALF))
            rounded = small if size < U32(0x38800000) else rounded
            rounded = U32(0x7C00) if size >= U32(0x47800000) else rounded
            rounded = U32(0x7E00) if size > INFINITY else rounded
            out[i] = U32(rounded | sign)
