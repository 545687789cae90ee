"""Counts of the digits of magnitudes in numba, by which a k-th largest is found in any vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit
from gradstats.kernels.counting_cpu_loops import count_heads
from gradstats.kernels.threads import in_threads

DIGIT = 16  # bits of a magnitude that one pass counts


def digit_counts(patterns: NDArray[Any], prefix: int, shift: int) -> NDArray[np.int64]:
    """How many magnitudes that begin with a prefix have each next digit."""
    width = patterns.dtype.type
    top = shift == 8 * patterns.itemsize - DIGIT
    heads = patterns.view(np.uint16)[patterns.itemsize // 2 - 1 :: patterns.itemsize // 2]

    def work(chunks: Iterator[slice]) -> NDArray[np.int32]:
        counts = np.zeros((2, 1 << DIGIT), np.int32)
        for chunk in chunks:
            if top:
                count_heads(heads[chunk], np.uint16(0), counts)
            else:
                count_digits(patterns[chunk], width(prefix), width(shift), counts[0])
        return counts

    counts = np.asarray(sum(each.sum(0, dtype=np.int64) for each in in_threads(work, len(heads))))
    if top:  # either sign
        counts = counts.reshape(2, -1).sum(0)
    return counts


@jit
def count_digits(
    patterns: NDArray[Any], prefix: int, shift: int, counts: NDArray[np.int32]
) -> None:
    """Count the digits below a shift of the magnitudes that begin with a prefix."""
    width = patterns.dtype.type
    digit = width((1 << DIGIT) - 1)
    without_sign = width(prefix)
    for i in range(patterns.size):
        bits = width(patterns[i] << width(1)) >> width(1)
        if width(bits >> width(shift + DIGIT)) == without_sign:
            counts[width(bits >> shift) & digit] += 1


@jit
def first_equal(patterns: NDArray[Any], magnitude: int, out: NDArray[np.int64]) -> None:
    """Write the indices of the first elements of one magnitude, as many as `out` holds."""
    width = patterns.dtype.type
    count = 0
    for i in range(patterns.size):
        if count == out.size:
            return
        if width(patterns[i] << width(1)) >> width(1) == magnitude:
            out[count] = i
            count += 1
