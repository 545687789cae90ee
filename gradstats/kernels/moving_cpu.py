"""`moving` in numba, threaded by us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.counting_cpu import _in_threads
from gradstats.kernels.counting_cpu_loops import jit, jit_sums

MAGNITUDE = np.int16(0x7FFF)

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
def _largest_bits(bits: NDArray[np.int16]) -> int:
    largest = np.int16(0)
    for i in range(bits.size):
        largest = max(largest, np.int16(bits[i] & MAGNITUDE))
    return int(largest)


def largest_bits(values: Tensor) -> int:
    """See `moving.largest_bits`; of finite numbers they rise with the magnitude."""
    bits: int = _largest_bits(values.view(torch.int16).numpy())
    return bits


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

    return all(_in_threads(of_thread, values.numel()))
