"""`moving` in numba, threaded by us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.compiling import jit, jit_sums
from gradstats.kernels.threads import in_threads

MAGNITUDE, SIGN, ONE = np.int32(0x7FFFFFFF), np.int32(0x8000), np.int32(1)
SIXTEEN, HALF = np.int32(16), np.int32(0x3F000000)  # the bits of 0.5
# of float16: bits and half of what is below its mantissa, least normal number, the exponents' bias
BITS_16, BELOW_16 = np.int32(13), np.int32(0xFFF)
LEAST_16, BIAS_16 = np.int32(113 << 23), np.int32(112 << 23)
BELOW_BF = np.int32(0x7FFF)

# A sum of products with 0 is 0 unless something is not finite; sums may be taken in vector lanes.


@jit_sums
def _read(values: NDArray[Any]) -> bool:
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        total += values[i] * zero
    return bool(total == zero)


@jit_sums
def _copy(out: NDArray[Any], values: NDArray[Any]) -> bool:
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        value = values[i]
        total += value * zero
        out[i] = value
    return bool(total == zero)


@jit_sums
def _divide(out: NDArray[Any], values: NDArray[Any], divisor: Any) -> bool:
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        value = values[i]
        total += value * zero
        out[i] = value / divisor
    return bool(total == zero)


@jit_sums
def _divide_in_place(values: NDArray[Any], divisor: Any) -> bool:
    # of its own, because a loop over two names for one array is not put into vector lanes
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        value = values[i]
        total += value * zero
        values[i] = value / divisor
    return bool(total == zero)


@jit
def _divide_in_float16(
    out: NDArray[np.int16], values: NDArray[np.float32], divisor: np.float32
) -> int:
    """Round to float16, divide, round again; the largest bits of a magnitude."""
    half, largest = np.float32(0.5), np.int32(0)  # in 0.5 to 1 floats are 2^-24 apart
    for i in range(values.size):
        bits = np.float32(values[i]).view(np.int32)
        magnitude = np.int32(bits & MAGNITUDE)
        largest = max(largest, magnitude)
        tie = np.int32(np.int32(magnitude >> BITS_16) & ONE)
        normal = np.int32(np.int32(magnitude + BELOW_16 + tie) & ~np.int32(BELOW_16 * 2 + 1))
        small = np.float32(np.float32(abs(values[i]) + half) - half)
        share = small if magnitude < LEAST_16 else normal.view(np.float32)
        share = np.float32(share / divisor)
        rounded = share.view(np.int32)
        tie = np.int32(np.int32(rounded >> BITS_16) & ONE)
        normal = np.int32(np.int32(rounded + BELOW_16 + tie - BIAS_16) >> BITS_16)
        subnormal = np.int32(np.float32(share + half).view(np.int32) - HALF)
        code = subnormal if rounded < LEAST_16 else normal
        out[i] = np.int16(np.int32(code | np.int32(np.int32(bits >> SIXTEEN) & SIGN)))
    return int(largest)


@jit
def _divide_in_bfloat16(
    out: NDArray[np.int16], values: NDArray[np.float32], divisor: np.float32
) -> int:
    """As `_divide_in_float16`."""
    largest = np.int32(0)
    for i in range(values.size):
        bits = np.float32(values[i]).view(np.int32)
        magnitude = np.int32(bits & MAGNITUDE)
        largest = max(largest, magnitude)
        tie = np.int32(np.int32(magnitude >> SIXTEEN) & ONE)
        rounded = np.int32(np.int32(magnitude + BELOW_BF + tie) & ~np.int32(BELOW_BF * 2 + 1))
        share = np.float32(rounded.view(np.float32) / divisor).view(np.int32)
        tie = np.int32(np.int32(share >> SIXTEEN) & ONE)
        code = np.int32(np.int32(share + BELOW_BF + tie) >> SIXTEEN)
        out[i] = np.int16(np.int32(code | np.int32(np.int32(bits >> SIXTEEN) & SIGN)))
    return int(largest)


def divide_in_16_bits(out: Tensor, values: Tensor, divisor: int) -> float:
    """See `moving.divide_in_16_bits`."""
    array, target, by = values.numpy(), out.view(torch.int16).numpy(), np.float32(divisor)
    loop = _divide_in_float16 if out.dtype == torch.float16 else _divide_in_bfloat16

    def of_thread(parts: Iterator[slice]) -> int:
        return max((loop(target[part], array[part], by) for part in parts), default=0)

    bits = max(in_threads(of_thread, values.numel()), default=0)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


@jit
def _subtract_sent(residual: NDArray[Any], sent: NDArray[Any]) -> None:
    zero = sent.dtype.type(0)
    for i in range(residual.size):
        value = sent[i]
        rest = residual[i] - value
        residual[i] = rest if value - value == zero else zero


def subtract_sent(residual: Tensor, sent: Tensor) -> None:
    """See `moving.subtract_sent`."""
    out, values = residual.numpy(), sent.numpy()

    def of_thread(parts: Iterator[slice]) -> None:
        for part in parts:
            _subtract_sent(out[part], values[part])

    in_threads(of_thread, residual.numel())


@jit
def _clear_at(vector: NDArray[Any], places: NDArray[np.int64]) -> None:
    zero = vector.dtype.type(0)
    for i in range(places.size):
        vector[places[i]] = zero


@jit
def _add_at(
    vector: NDArray[Any], places: NDArray[np.int64], values: NDArray[Any], weight: Any
) -> None:
    for i in range(places.size):
        vector[places[i]] += values[i] * weight


def clear_at(vector: Tensor, places: Tensor) -> None:
    """See `moving.clear_at`."""
    _clear_at(vector.numpy(), places.numpy())


def add_at(vector: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """See `moving.add_at`."""
    array = vector.numpy()
    _add_at(array, places.numpy(), values.numpy(), array.dtype.type(weight))


def is_finite(values: Tensor) -> bool:
    """Whether all elements of a vector are finite."""
    array = values.numpy()
    return _over(lambda part: _read(array[part]), values)


def divide(out: Tensor, values: Tensor, divisor: float) -> bool:
    """See `moving.divide`, of vectors."""
    array, target = values.numpy(), out.numpy()
    by = array.dtype.type(divisor)
    if divisor == 1 and out is not values:
        return _over(lambda part: _copy(target[part], array[part]), values)
    if out.data_ptr() == values.data_ptr():
        return _over(lambda part: _divide_in_place(array[part], by), values)
    return _over(lambda part: _divide(target[part], array[part], by), values)


def _over(work: Callable[[slice], bool], values: Tensor) -> bool:
    """Whether the work finds nothing but finite numbers in all parts of a vector."""

    def of_thread(parts: Iterator[slice]) -> bool:
        return all([work(part) for part in parts])  # each does its part

    return all(in_threads(of_thread, values.numel()))
