"""The loops of `rotating_cpu` that find and pack the nearest levels, and look them up again."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit, jit_sums

F32, F64, U8, U32, U64 = np.float32, np.float64, np.uint8, np.uint32, np.uint64
ONE, LOW = U64(1), U64(0xFFFFFFFF)
PAIRS, FOURS = U64(0x0001000100010001), U64(0x0000000100000001)
PART = 1024  # elements whose levels stay in the first-level cache beside them


class Book(NamedTuple):
    """An alphabet of 2^bits levels.

    Attributes:
        levels: float32 `[L]`.
        steps: float32 `[⌈(L - 1)/3⌉, 2, 3]`, boundaries and the levels above them, three at a
            time, at the end infinite; none of many levels.
        boundaries: float32 `[L]`, of many levels, the last one infinite.
        first: uint8 `[65536]`, of many levels, for the leading half of the pattern of a float: how
            many boundaries are below all floats that begin so.
        bits: of a symbol.
    """

    levels: NDArray[np.float32]
    steps: NDArray[np.float32]
    boundaries: NDArray[np.float32]
    first: NDArray[np.uint8]
    bits: int


@jit_sums
def _squares(x: NDArray[Any]) -> float:
    total = 0.0
    for i in range(x.size):
        total += F64(x[i]) * F64(x[i])
    return total


@jit_sums
def _products(x: NDArray[Any], levels: NDArray[Any], scale: float) -> tuple[float, float]:
    along, squares = F64(0), F64(0)
    for i in range(x.size):
        q = F64(levels[i] * scale)
        along += F64(x[i]) * q
        squares += q * q
    return along, squares


@jit
def _climb(
    x: NDArray[Any],
    inverse: float,
    steps: NDArray[Any],
    symbols: NDArray[Any],
    levels: NDArray[Any],
) -> None:
    """Go up one level for each of three boundaries that is below x · inverse."""
    one, two, three = steps[0, 0], steps[0, 1], steps[0, 2]
    above_one, above_two, above_three = steps[1, 0], steps[1, 1], steps[1, 2]
    for i in range(x.size):
        y = x[i] * inverse
        first, second, third = one < y, two < y, three < y
        symbols[i] = U8(symbols[i] + U8(U8(first) + U8(U8(second) + U8(third))))
        level = above_two if second else above_one
        level = above_three if third else level
        levels[i] = level if first else levels[i]


@jit
def _find(
    x: NDArray[Any], inverse: float, book: Book, symbols: NDArray[Any], levels: NDArray[Any]
) -> None:
    """Begin with the boundaries that are surely below floats that begin alike."""
    for i in range(x.size):
        levels[i] = x[i] * inverse
    heads = levels.view(np.uint16)[1::2]
    for i in range(x.size):
        symbol = U32(book.first[heads[i]])
        while book.boundaries[symbol] < levels[i]:
            symbol += U32(1)
        symbols[i] = U8(symbol)
        levels[i] = book.levels[symbol]


@jit
def _round(
    x: NDArray[Any], scale: float, book: Book, symbols: NDArray[Any], levels: NDArray[Any]
) -> None:
    """The nearest levels to x / scale, and their symbols."""
    inverse = F32(1) / scale if scale else F32(0)
    if book.first.size:
        _find(x, inverse, book, symbols, levels)
        return
    symbols[:] = 0
    levels[:] = book.levels[0]
    for three in range(book.steps.shape[0]):
        _climb(x, inverse, book.steps[three], symbols, levels)


@jit
def _pack(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    """Eight symbols at a time: bytes move together, then pairs, then fours."""
    width, two, four = U64(bits), U64(2 * bits), U64(4 * bits)
    of_byte, of_pair = ((ONE << width) - ONE) * PAIRS, ((ONE << two) - ONE) * FOURS
    words, rows = symbols.view(np.uint64), out.reshape(-1, bits)
    for i in range(words.size):
        word = words[i]
        word = (word & of_byte) | ((word >> U64(8)) & of_byte) << width
        word = (word & of_pair) | ((word >> U64(16)) & of_pair) << two
        words[i] = (word & LOW) | (word >> U64(32)) << four
    for i in range(words.size):
        for byte in range(bits):
            rows[i, byte] = U8(words[i] >> U64(8 * byte))


@jit
def _unpack(data: NDArray[Any], bits: int, symbols: NDArray[Any]) -> None:
    """The inverse of `_pack`."""
    width, two, four = U64(bits), U64(2 * bits), U64(4 * bits)
    of_byte, of_pair = ((ONE << width) - ONE) * PAIRS, ((ONE << two) - ONE) * FOURS
    of_four = (ONE << four) - ONE
    words, rows = symbols.view(np.uint64), data.reshape(-1, bits)
    for i in range(words.size):
        word = U64(0)
        for byte in range(bits):
            word |= U64(rows[i, byte]) << U64(8 * byte)
        words[i] = word
    for i in range(words.size):
        word = (words[i] & of_four) | (words[i] >> four) << U64(32)
        word = (word & of_pair) | ((word >> two) & of_pair) << U64(16)
        words[i] = (word & of_byte) | ((word >> width) & of_byte) << U64(8)


@jit
def quantize(
    x: NDArray[Any], block: int, book: Book, packed: NDArray[Any], of_blocks: NDArray[Any]
) -> None:
    """Round at the scale of each block, and pack; four numbers of each block."""
    symbols, spare = np.empty(block, np.uint8), np.empty(PART, np.float32)
    nbytes = block // 8 * book.bits
    for i in range(of_blocks.shape[0]):
        one, out = x[i * block : (i + 1) * block], packed[i * nbytes : (i + 1) * nbytes]
        _round_block(one, book, symbols, of_blocks[i], spare)
        _pack(symbols, book.bits, out)


@jit
def _round_block(
    x: NDArray[Any], book: Book, symbols: NDArray[Any], row: NDArray[Any], spare: NDArray[Any]
) -> None:
    row[0] = _squares(x)
    spread = F32(F32(np.sqrt(row[0])) / F32(np.sqrt(F64(x.size))))
    row[1] = spread
    for start in range(0, x.size, PART):
        part, levels = x[start : start + PART], spare[: min(PART, x.size - start)]
        _round(part, spread, book, symbols[start : start + PART], levels)
        along, squares = _products(part, levels, spread)
        row[2] += along
        row[3] += squares


@jit
def look_up(
    packed: NDArray[Any], block: int, book: Book, scales: NDArray[Any], out: NDArray[Any]
) -> None:
    """Levels of packed symbols times the scales of their blocks."""
    symbols, nbytes = np.empty(block, np.uint8), block // 8 * book.bits
    for i in range(scales.size):
        _unpack(packed[i * nbytes : (i + 1) * nbytes], book.bits, symbols)
        _look_up(symbols, book.levels * scales[i], out[i * block : (i + 1) * block])


@jit
def _look_up(symbols: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(symbols.size):
        out[i] = table[symbols[i]]
