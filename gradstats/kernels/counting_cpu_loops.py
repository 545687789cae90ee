"""The loops that count and sum for `cpu`, compiled by numba."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit, jit_sums

BLOCK = 1 << 14  # elements: a float32 block and its bins stay in the second-level cache
PAGE = 64  # keys that are passed over together where all are empty
PADDING = 80  # entries between tables: keys a multiple of 4 kB apart would wait for each other


@jit
def count_16_bit(patterns: NDArray[np.uint16], counts: NDArray[Any]) -> None:
    """Count the patterns of a vector.

    One table takes half the cache of two, which float16's many values need; where values repeat,
    two tables keep each from waiting for the last store into it.
    """
    for start in range(0, patterns.size, BLOCK):
        some = patterns[start : start + BLOCK]
        sample = some[: BLOCK // 32]
        often = 16 * count_repeats(sample) > sample.size
        count_heads(some, np.uint16(0), counts if often else counts[:1])


@jit
def count_repeats(patterns: NDArray[Any]) -> int:
    """Count the patterns that are equal to the one before."""
    count = 0
    for i in range(1, patterns.size):
        count += patterns[i] == patterns[i - 1]
    return count


@jit
def count_heads(heads: NDArray[Any], shift: int, counts: NDArray[Any]) -> None:
    """Count the keys of a vector, in turn in the first table and in the last."""
    one, two = counts[0], counts[-1]
    whole = heads.size - heads.size % 2
    if shift:
        for i in range(0, whole, 2):
            one[heads[i] >> shift] += 1
            two[heads[i + 1] >> shift] += 1
    else:
        for i in range(0, whole, 2):
            one[heads[i]] += 1
            two[heads[i + 1]] += 1
    for i in range(whole, heads.size):
        one[heads[i] >> shift] += 1


@jit
def count_nonzero(
    heads: NDArray[Any], shift: int, patterns: NDArray[Any], magnitude: int, counts: NDArray[Any]
) -> None:
    """Count the keys of what is not 0."""
    # Among many zeros, skipping them costs less than their turns in the table.
    for i in range(patterns.size):
        if patterns[i] & magnitude:
            counts[0, heads[i] >> shift] += 1


@jit
def move(
    heads: NDArray[Any],
    shift: int,
    patterns: NDArray[Any],
    keys: Keys,
    source: NDArray[Any],
    target: NDArray[Any],
    others: bool,
) -> None:
    """Move what is not 0 and has no bit below its key between tables; or the others."""
    for page in range(0, patterns.size, PAGE):
        bits = patterns[page : page + PAGE]
        if count_points(bits, keys.below) == (bits.size if others else 0):
            continue
        for i in range(bits.size):
            if bits[i] & keys.magnitude and (bits[i] & keys.below != 0) == others:
                key = heads[page + i] >> shift
                target[key] += 1
                source[key] -= 1


@jit
def count_points(patterns: NDArray[Any], below: int) -> int:
    """Count the patterns that have no bit below their key; 0 has none."""
    width = patterns.dtype.type
    count = width(0)
    for i in range(patterns.size):
        count = width(count + width(width(patterns[i] & below) == width(0)))
    return int(count)


@jit_sums
def sum_block(values: NDArray[Any]) -> tuple[float, float, float]:
    """Sum x, |x| and x²."""
    total = 0.0
    total_abs = 0.0
    total_sq = 0.0
    for i in range(values.size):
        x = np.float64(values[i])
        total += x
        total_abs += abs(x)
        total_sq += x * x
    return total, total_abs, total_sq


@jit
def extremes(patterns: NDArray[Any], magnitude: int, below: int) -> tuple[int, int, int]:
    """The largest magnitude, how many are 0, and how many have no bit below their key."""
    # As integers: a maximum of floats, in which a NaN has its say, is not put into vector lanes.
    # Every step is cast back to their width, which numba would double, halving the lanes.
    width = patterns.dtype.type
    largest = width(0)
    zeros = width(0)
    points = width(0)
    for i in range(patterns.size):
        bits = width(patterns[i] & magnitude)
        largest = max(largest, bits)
        zeros = width(zeros + width(bits == width(0)))
        points = width(points + width(width(bits & below) == width(0)))
    return largest, zeros, points


@jit
def count_value(patterns: NDArray[Any], value: int) -> int:
    """Count one pattern."""
    width = patterns.dtype.type
    count = width(0)
    for i in range(patterns.size):
        count = width(count + width(patterns[i] == value))
    return int(count)


@jit
def sum_finite(values: NDArray[Any]) -> tuple[float, float, float, float]:
    """Sum x, |x| and x² of finite values; the largest of them too."""
    total = 0.0
    total_abs = 0.0
    total_sq = 0.0
    largest = 0.0
    for i in range(values.size):
        x = np.float64(values[i])
        if np.isfinite(x):
            total += x
            total_abs += abs(x)
            total_sq += x * x
            largest = max(largest, abs(x))
    return total, total_abs, total_sq, largest


@jit
def sum_block_of(
    patterns: NDArray[Any],
    values: NDArray[Any],
    keys: Keys,
    sums: NDArray[Any],
    zeros: NDArray[Any],
) -> tuple[int, int]:
    """Sum a block, count its zeros; its largest magnitude, if all are finite, and its points."""
    top, either, points = extremes(patterns, keys.magnitude, keys.below)
    if either:
        zeros[0] = count_value(patterns, patterns.dtype.type(0))
        zeros[1] = either - zeros[0]
    if not top:
        return top, points
    sums[0], sums[1], sums[2] = sum_block(values)
    if not np.isfinite(sums[1]):
        sums[0], sums[1], sums[2], sums[3] = sum_finite(values)
        top = patterns.dtype.type(0)
    return top, points


@jit
def sum_magnitudes(
    patterns: NDArray[Any], values: NDArray[Any], magnitude: int, below: int, sums: NDArray[Any]
) -> tuple[int, int]:
    """Sum |x| in blocks, into the second column; return the largest magnitude and the zeros."""
    largest = patterns.dtype.type(0)
    zeros = 0
    for block in range(sums.shape[0]):
        one = slice(block * BLOCK, (block + 1) * BLOCK)
        top, none, _ = extremes(patterns[one], magnitude, below)
        largest = max(largest, top)
        zeros += none
        _, sums[block, 1], _ = sum_block(values[one])
    return largest, zeros


@jit
def count_range(
    patterns: NDArray[Any],
    values: NDArray[Any],
    heads: NDArray[Any],
    shift: int,
    keys: Keys,
    counts: NDArray[Any],
    sums: NDArray[Any],
    largest: NDArray[Any],
    zeros: NDArray[Any],
) -> int:
    """Sum every block of a vector, and count its keys; return how many points are not 0.

    Points, the patterns with no bit below their key, have a table of their own, `counts[0]`. A
    block is counted before it is summed, into the table that was right for the block before: the
    counts take longer than reading memory does, which goes on beside them, and the other loops
    find the block in the cache. What belongs into the other table is moved.
    """
    moved = 0
    kind = -1  # the table of the block before; -1 for many zeros, which are not counted one by one
    for block in range(sums.shape[0]):
        one = slice(block * BLOCK, (block + 1) * BLOCK)
        bits = patterns[one]
        if kind >= 0:
            count_heads(heads[one], shift, counts[kind])
        largest[block], points = sum_block_of(bits, values[one], keys, sums[block], zeros[block])
        either = zeros[block, 0] + zeros[block, 1]
        if kind < 0:
            kind = 0 if points == bits.size else 1
            count_block(heads[one], shift, bits, keys, zeros[block], counts[kind])
        if kind == 0 and points < bits.size:
            move(heads[one], shift, bits, keys, counts[0, 0], counts[1, 0], True)
        if kind == 1 and either < points:
            move(heads[one], shift, bits, keys, counts[1, 0], counts[0, 0], False)
        kind = -1 if 2 * either >= bits.size else 0 if points == bits.size else 1
        moved += points - either
    return moved


@jit
def count_block(
    heads: NDArray[Any],
    shift: int,
    patterns: NDArray[Any],
    keys: Keys,
    zeros: NDArray[Any],
    table: NDArray[Any],
) -> None:
    """Count the keys of a block whose zeros are counted."""
    positive, negative = zeros
    either = positive + negative
    if 2 * either < patterns.size:
        count_heads(heads, shift, table)
        return
    table[0, 0] += positive
    table[0, keys.half] += negative
    if either < patterns.size:
        count_nonzero(heads, shift, patterns, keys.magnitude, table)


class Keys(NamedTuple):
    """The masks and shifts that turn a pattern into its index in a table of counts.

    Attributes:
        magnitude: mask of a pattern without its sign.
        infinity: pattern; larger magnitudes are NaN.
        shift: bits of a pattern below its key.
        below: mask of those bits.
        half: the first key of negative values.
    """

    magnitude: Any
    infinity: Any
    shift: int
    below: Any
    half: int
