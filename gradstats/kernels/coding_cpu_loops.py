"""The loops of `coding_cpu`, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.counting_cpu_loops import jit, jit_sums

U32, U64 = np.uint32, np.uint64
LOW = U64(0xFFFFFFFF)
TO_WORDS = 2.0**32


@jit
def scale(
    values: NDArray[Any], inverse: NDArray[Any], bucket: int, offset: int, out: NDArray[Any]
) -> None:
    """Multiply elements from `offset` on by the factor of their bucket."""
    i = 0
    while i < values.size:
        which = (offset + i) // bucket
        end = min(values.size, (which + 1) * bucket - offset)
        factor = inverse[which]
        for j in range(i, end):
            out[j] = values[j] * factor
        i = end


@jit
def find(
    y: NDArray[Any],
    first: NDArray[Any],
    boundaries: NDArray[Any],
    middle: int,
    symbols: NDArray[Any],
) -> None:
    """Count the boundaries that are below each y; `middle` for a NaN."""
    heads = y.view(np.uint16)[1::2]
    last = boundaries.size
    for i in range(y.size):
        symbol = np.int64(first[heads[i]])
        if symbol < 0:  # there is a boundary among the floats that begin so
            symbol = ~symbol if y[i] == y[i] else np.int64(middle)
            while symbol < last and boundaries[symbol] < y[i]:
                symbol += 1
        symbols[i] = symbol


@jit
def draw(key0: int, key1: int, counter: int, out: NDArray[Any]) -> None:
    """Philox-4x32-10 from a counter on."""
    for i in range(out.size // 4):
        c0, c1, c2, c3 = U64(counter + i) & LOW, U64(0), U64(0), U64(0)
        k0, k1 = U64(key0), U64(key1)
        for _ in range(10):
            p0 = c0 * U64(0xD2511F53)
            p1 = c2 * U64(0xCD9E8D57)
            c0 = (p1 >> U64(32)) ^ c1 ^ k0
            c1 = p1 & LOW
            c2 = (p0 >> U64(32)) ^ c3 ^ k1
            c3 = p0 & LOW
            k0 = (k0 + U64(0x9E3779B9)) & LOW
            k1 = (k1 + U64(0xBB67AE85)) & LOW
        out[4 * i] = c0
        out[4 * i + 1] = c1
        out[4 * i + 2] = c2
        out[4 * i + 3] = c3


@jit
def round_up(
    y: NDArray[Any],
    levels: NDArray[Any],
    gaps: NDArray[Any],
    drawn: NDArray[Any],
    symbols: NDArray[Any],
) -> None:
    """Take the level above with a probability proportional to the distance from that below."""
    for i in range(y.size):
        if y[i] == y[i]:
            below = symbols[i]
            share = (np.float64(y[i]) - levels[below]) * gaps[below]
            symbols[i] += np.float64(drawn[i]) < share * TO_WORDS


@jit
def pack(symbols: NDArray[Any], bits: int, powers: NDArray[Any], out: NDArray[Any]) -> None:
    """Write symbols as digits, or in bits of their own; a whole word may be written at the end."""
    if powers.size:
        _pack_digits(symbols, powers, out)
    else:
        _pack_bits(symbols, U64(bits), out)


@jit
def _pack_digits(symbols: NDArray[Any], powers: NDArray[Any], out: NDArray[Any]) -> None:
    digits = powers.size
    full = symbols.size // digits
    words = out[: 8 * full].view(np.uint64)
    for i in range(full):
        words[i] = _number(symbols[i * digits : (i + 1) * digits], powers)
    rest = symbols[full * digits :]
    if rest.size:
        word = _number(rest, powers)
        for byte in range(8):
            out[8 * full + byte] = (word >> U64(8 * byte)) & U64(255)


@jit
def _number(symbols: NDArray[Any], powers: NDArray[Any]) -> Any:
    word = U64(0)
    for j in range(symbols.size):
        word += U64(symbols[j]) * powers[j]
    return word


@jit
def _pack_bits(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    held, fill, place = U64(0), U64(0), 0
    for i in range(symbols.size):
        held |= U64(symbols[i]) << fill
        fill += bits
        while fill >= U64(8):
            out[place] = held & U64(255)
            place += 1
            held >>= U64(8)
            fill -= U64(8)
    if fill:
        out[place] = held


@jit
def unpack(data: NDArray[Any], bits: int, digits: int, levels: int, out: NDArray[Any]) -> int:
    """Read symbols; how many are out of range. Those become 0."""
    if digits:
        return int(_unpack_digits(data, digits, U64(levels), out))
    return int(_unpack_bits(data, U64(bits), U64(levels), out))


@jit
def _unpack_digits(data: NDArray[Any], digits: int, levels: int, out: NDArray[Any]) -> int:
    wrong = 0
    place = 0
    for start in range(0, out.size, digits):
        word = U64(0)
        for byte in range(8):
            word |= U64(data[place + byte]) << U64(8 * byte)
        place += 8
        for j in range(min(digits, out.size - start)):
            left = word // levels
            out[start + j] = word - left * levels
            word = left
        wrong += word != U64(0)
    return wrong


@jit
def _unpack_bits(data: NDArray[Any], bits: int, levels: int, out: NDArray[Any]) -> int:
    wrong = 0
    held, fill, place = U64(0), U64(0), 0
    mask = (U64(1) << bits) - U64(1)
    for i in range(out.size):
        while fill < bits:
            held |= U64(data[place]) << fill
            place += 1
            fill += U64(8)
        symbol = held & mask
        if symbol >= levels:
            wrong += 1
            symbol = U64(0)
        out[i] = symbol
        held >>= bits
        fill -= bits
    return wrong


@jit
def add(
    symbols: NDArray[Any],
    books: NDArray[Any],
    factors: NDArray[Any],
    bucket: int,
    offset: int,
    weight: float,
    out: NDArray[Any],
) -> None:
    """Add weight · level · factor of the bucket."""
    i = 0
    while i < out.size:
        which = (offset + i) // bucket
        end = min(out.size, (which + 1) * bucket - offset)
        book = books[which] if books.shape[0] > 1 else books[0]
        factor = factors[which]
        for j in range(i, end):
            out[j] += weight * (book[symbols[j]] * factor)
        i = end


@jit
def largest(patterns: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The largest magnitude of every piece, as a pattern."""
    width = patterns.dtype.type
    for p in range(out.size):
        top = width(0)
        part = patterns[p * piece : (p + 1) * piece]
        for i in range(part.size):
            top = max(top, width(width(part[i] << width(1)) >> width(1)))
        out[p] = top


@jit_sums
def squares(values: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The sum of squares of every piece."""
    for p in range(out.size):
        part = values[p * piece : (p + 1) * piece]
        total = 0.0
        for i in range(part.size):
            total += np.float64(part[i]) * np.float64(part[i])
        out[p] = total


@jit_sums
def magnitudes(values: NDArray[Any], piece: int, out: NDArray[Any]) -> None:
    """The sum of magnitudes of every piece."""
    for p in range(out.size):
        part = values[p * piece : (p + 1) * piece]
        total = 0.0
        for i in range(part.size):
            total += abs(np.float64(part[i]))
        out[p] = total
