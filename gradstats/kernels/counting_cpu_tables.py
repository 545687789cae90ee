"""Counting in numba: tables of counts, of whole vectors and of segments."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit
from gradstats.kernels.counting_cpu_loops import (
    BLOCK,
    PAGE,
    Keys,
    count_16_bit,
    count_range,
)


class Segments(NamedTuple):
    """The results for the segments of a vector.

    Attributes:
        specials: `[segments, 5]`, zeros, negative zeros, NaN, inf, -inf.
        largest: `[segments]`, the largest finite magnitude of 16-bit values, as a pattern.
        rows: `[3, …]`, bins and the elements of either sign in each; segment i has the columns
            from `row_ends[i]` to `row_ends[i + 1]`.
        listed: `[2, …]`, patterns of 16-bit values and their counts, stored in the same way.
    """

    specials: NDArray[np.int64]
    largest: NDArray[Any]
    rows: NDArray[np.int32]
    row_ends: NDArray[np.int64]
    listed: NDArray[np.int32]
    listed_ends: NDArray[np.int64]


@jit
def tally_wide(
    patterns: NDArray[Any],
    values: NDArray[Any],
    heads: NDArray[Any],
    head_shift: int,
    ends: NDArray[np.int64],
    keys: Keys,
    counts: NDArray[Any],
    blocks: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    segments: Segments,
) -> None:
    """Count and sum segments of 32- or 64-bit values.

    A table of counts serves them all. It is empty before and after each, and only its keys between
    the least and the largest magnitude are read, so that a short segment costs little.
    """
    sums, largest, zeros = blocks
    first = 0
    for i in range(ends.size - 1):
        segment = slice(ends[i], ends[i + 1])
        bits, special = patterns[segment], segments.specials[i]
        last = first + (bits.size + BLOCK - 1) // BLOCK
        points = count_range(
            bits,
            values[segment],
            heads[segment],
            head_shift,
            keys,
            counts,
            sums[first:last],
            largest[first:last],
            zeros[first:last],
        )
        for block in range(first, last):
            special[0] += zeros[block, 0]
            special[1] += zeros[block, 1]
        low, high = span(bits, keys.magnitude)
        if high >= np.int64(keys.infinity):
            count_nonfinite(bits, keys, special)
        low, high = low >> keys.shift, high >> keys.shift
        first_kind = 0 if points else 1
        for kind in range(first_kind, 2):
            join_tables(counts[kind], keys, low, high)
        drop_zeros(counts, keys, special)
        tables, place = counts[:, 0], segments.row_ends[i]
        place = take_rows(tables, first_kind, keys, low, high, segments.rows, place)
        segments.row_ends[i + 1] = place
        first = last


@jit
def tally_16_bit(
    patterns: NDArray[np.uint16],
    ends: NDArray[np.int64],
    keys: Keys,
    counts: NDArray[Any],
    segments: Segments,
) -> None:
    """Count segments of 16-bit values, as `tally_wide` does."""
    table = counts[0, 0]
    for i in range(ends.size - 1):
        bits, special = patterns[ends[i] : ends[i + 1]], segments.specials[i]
        low, high = span(bits, keys.magnitude)
        count_16_bit(bits, counts[0])
        join_tables(counts[0], keys, low, high)
        special[0], special[1] = table[0], table[keys.half]
        place = segments.listed_ends[i]
        segments.listed_ends[i + 1] = take_list(table, keys, low, high, segments.listed, place)
        segments.largest[i] = high
        if high >= np.int64(keys.infinity):
            segments.largest[i] = count_nonfinite(bits, keys, special)
        place = segments.row_ends[i]
        segments.row_ends[i + 1] = take_rows(
            counts[:, 0], 0, keys, low, high, segments.rows, place
        )


@jit
def span(patterns: NDArray[Any], magnitude: int) -> tuple[np.int64, np.int64]:
    """The least magnitude that is not 0, and the largest: the first is more if all are 0."""
    width = patterns.dtype.type
    low = width(magnitude - width(1))  # so that one more is an int64
    high = width(0)
    for i in range(patterns.size):
        bits = width(patterns[i] & magnitude)
        high = max(high, bits)
        low = min(low, width(bits - width(1)))  # 0 turns into the largest integer
    return np.int64(low) + 1, np.int64(high)


@jit
def count_nonfinite(patterns: NDArray[Any], keys: Keys, special: NDArray[np.int64]) -> np.int64:
    """Count NaN, inf and -inf; return the largest finite magnitude."""
    largest = np.int64(0)
    for i in range(patterns.size):
        bits = patterns[i] & keys.magnitude
        if bits > keys.infinity:
            special[2] += 1
        elif bits < keys.infinity:
            largest = max(largest, np.int64(bits))
        elif patterns[i] == bits:
            special[3] += 1
        else:
            special[4] += 1
    return largest


@jit
def join_tables(counts: NDArray[Any], keys: Keys, low: int, high: int) -> None:
    """Move what the second table has, at 0 and from low to high, into the first."""
    if counts.shape[0] == 1:
        return
    one, two = counts[0], counts[-1]
    for start in (0, keys.half):
        one[start] += two[start]
        two[start] = 0
        for page in range(start + low // PAGE * PAGE, start + high + 1, PAGE):
            if not empty(two[page : page + PAGE]):
                for key in range(page, page + PAGE):
                    one[key] += two[key]
                    two[key] = 0


@jit
def drop_zeros(counts: NDArray[Any], keys: Keys, special: NDArray[np.int64]) -> None:
    """Take the zeros out of both tables: what is left at their keys is subnormal."""
    for start, zeros in ((0, special[0]), (keys.half, special[1])):
        counts[1, 0, start] += counts[0, 0, start] - zeros
        counts[0, 0, start] = 0


@jit
def empty(part: NDArray[Any]) -> bool:
    """Whether all counts are 0."""
    width = part.dtype.type
    bits = width(0)
    for i in range(part.size):
        bits = width(bits | part[i])
    return bool(bits == width(0))


@jit
def take_list(
    table: NDArray[Any], keys: Keys, low: int, high: int, listed: NDArray[Any], place: int
) -> int:
    """List the keys from low to high and their counts; zeros, the first, leave the table."""
    for start in (0, keys.half):
        if table[start]:
            listed[0, place] = start
            listed[1, place] = table[start]
            table[start] = 0
            place += 1
        for page in range(start + low // PAGE * PAGE, start + high + 1, PAGE):
            if empty(table[page : page + PAGE]):
                continue
            for key in range(page, page + PAGE):
                if table[key]:
                    listed[0, place] = key
                    listed[1, place] = table[key]
                    place += 1
    return place


@jit
def take_rows(
    tables: NDArray[Any],
    first: int,
    keys: Keys,
    low: int,
    high: int,
    rows: NDArray[Any],
    place: int,
) -> int:
    """Move the keys from low to high out of the tables; those of finite values become rows.

    A key has one bin per table, in the order of the tables; those before the first are empty.
    """
    finite: Any = np.int64(keys.infinity) >> keys.shift
    kinds = tables.shape[0]
    positives, negatives = tables, tables[:, keys.half :]
    for page in range(low // PAGE * PAGE, high + 1, PAGE):
        whole = slice(page, page + PAGE)
        held = False
        for kind in range(first, kinds):
            held |= not (empty(positives[kind, whole]) and empty(negatives[kind, whole]))
        if not held:
            continue
        for key in range(page, min(page + PAGE, finite)):
            for kind in range(first, kinds):
                if positives[kind, key] | negatives[kind, key]:
                    rows[0, place] = kinds * key + kind
                    rows[1, place] = positives[kind, key]
                    rows[2, place] = negatives[kind, key]
                    place += 1
        positives[first:, whole] = 0
        negatives[first:, whole] = 0
    return place
