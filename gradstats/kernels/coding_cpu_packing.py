"""The loops that pack symbols and unpack them, compiled by numba."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit

U8, U16, I32, U32, U64, F64 = np.uint8, np.uint16, np.int32, np.uint32, np.uint64, np.float64
TO_BITS, BYTES, BIT_OF_BYTE = (
    U64(0x0102040810204080),
    U64(0x0101010101010101),
    U64(0x8040201008040201),
)
LOW_SEVEN = U64(0x7F7F7F7F7F7F7F7F)


class Packer(NamedTuple):
    """How symbols lie in bytes.

    Attributes:
        levels: L.
        bits: of a symbol, where each has its own; 0 where symbols stay as they are.
        powers: uint64, 1, L, L², … of the digits of a 64-bit number; empty where there are bits.
    """

    levels: int
    bits: int
    powers: NDArray[np.uint64]


@jit
def byte_of(how: Packer, symbol: int) -> int:
    """Index of the first byte of a symbol that begins a group."""
    digits = how.powers.size
    if digits:
        return symbol // digits * 8
    return symbol * how.bits // 8 if how.bits else symbol


@jit
def pack(symbols: NDArray[Any], how: Packer, out: NDArray[Any]) -> None:
    """Write symbols into all bytes of `out`."""
    whole = 0
    if how.powers.size:
        _pack_digits(symbols, how.powers, out)
    elif how.bits in (0, 8):
        for i in range(symbols.size):
            out[i] = symbols[i]
    else:
        if how.bits in (1, 2, 4) and symbols.itemsize == 1:
            whole = symbols.size // 8 * 8
            pack_narrow(symbols[:whole], how.bits, out)
        _pack_bits(symbols[whole:], U64(how.bits), out[whole * how.bits // 8 :])


@jit
def pack_narrow(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    """Symbols of 1, 2 or 4 bits, whose lanes are shifted together."""
    if bits == 4:
        pairs = symbols.view(np.uint16)
        for i in range(pairs.size):
            out[i] = U8(U16(pairs[i] | U16(pairs[i] >> U16(4))))
    elif bits == 2:
        fours = symbols.view(np.uint32)
        for i in range(fours.size):
            halves = U32(fours[i] | U32(fours[i] >> U32(6)))
            out[i] = U8(U32(halves | U32(halves >> U32(12))))
    else:
        eights = symbols.view(np.uint64)
        for i in range(eights.size):
            out[i] = U8((eights[i] * TO_BITS) >> U64(56))


@jit
def _pack_bits(symbols: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    held, fill, index = U64(0), U64(0), 0
    for i in range(symbols.size):
        held |= U64(symbols[i]) << fill
        fill += bits
        while fill >= U64(8):
            out[index] = held & U64(255)
            index += 1
            held >>= U64(8)
            fill -= U64(8)
    if fill:
        out[index] = held


@jit
def _pack_digits(symbols: NDArray[Any], powers: NDArray[Any], out: NDArray[Any]) -> None:
    digits, base = powers.size, powers[1]
    full, low = symbols.size // digits, digits // 2
    words = out[: 8 * full].view(np.uint64)
    rows = symbols[: full * digits].reshape(-1, digits)
    for i in range(full):  # two halves, neither of which waits for the other
        row = rows[i]
        lower, upper = U64(0), U64(row[-1]) if digits % 2 else U64(0)
        for j in range(low - 1, -1, -1):
            lower = lower * base + U64(row[j])
            upper = upper * base + U64(row[low + j])
        words[i] = lower + upper * powers[low]
    rest, word = symbols[full * digits :], U64(0)
    for j in range(rest.size):
        word += U64(rest[j]) * powers[j]
    for byte in range(8 * full, out.size):
        out[byte] = word & U64(255)
        word >>= U64(8)


@jit
def unpack(data: NDArray[Any], how: Packer, out: NDArray[Any]) -> int:
    """Read symbols from all bytes of `data`; how many are out of range. Those become 0."""
    whole = 0
    if how.powers.size:
        return int(_unpack_digits(data, how, out))
    if how.bits == 8:
        whole = out.size
        for i in range(whole):
            out[i] = data[i]
    elif how.bits in (1, 2, 4) and out.itemsize == 1:
        whole = out.size // 8 * 8
        _unpack_narrow(data, how.bits, out[:whole])
    _unpack_bits(data[whole * how.bits // 8 :], U64(how.bits), out[whole:])
    if how.levels == 1 << how.bits:
        return 0
    return int(_refuse(how.levels, out))


@jit
def _refuse(levels: int, symbols: NDArray[Any]) -> int:
    """How many symbols are out of range; they become 0."""
    most, top = U32(levels - 1), U32(0)
    for i in range(symbols.size):
        top = max(top, U32(symbols[i]))
    if top <= most:
        return 0
    wrong = 0
    for i in range(symbols.size):
        if symbols[i] > most:
            wrong += 1
            symbols[i] = 0
    return wrong


@jit
def _unpack_narrow(data: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    """Symbols of 1, 2 or 4 bits: a byte becomes a wider lane."""
    if bits == 4:
        pairs = out.view(np.uint16)
        for i in range(pairs.size):
            two = U16(data[i])
            pairs[i] = U16(U16(two | U16(two << U16(4))) & U16(0x0F0F))
    elif bits == 2:
        fours = out.view(np.uint32)
        for i in range(fours.size):
            four = U32(data[i])
            four = U32(U32(four | U32(four << U32(12))) & U32(0x000F000F))
            fours[i] = U32(U32(four | U32(four << U32(6))) & U32(0x03030303))
    else:
        eights = out.view(np.uint64)
        for i in range(eights.size):
            eight = (U64(data[i]) * BYTES) & BIT_OF_BYTE
            eights[i] = ((eight + LOW_SEVEN) >> U64(7)) & BYTES


@jit
def _unpack_bits(data: NDArray[Any], bits: int, out: NDArray[Any]) -> None:
    held, fill, index = U64(0), U64(0), 0
    mask = (U64(1) << bits) - U64(1)
    for i in range(out.size):
        while fill < bits:
            held |= U64(data[index]) << fill
            index += 1
            fill += U64(8)
        out[i] = held & mask
        held >>= bits
        fill -= bits


@jit
def _unpack_digits(data: NDArray[Any], how: Packer, out: NDArray[Any]) -> int:
    """Digits of words, without a division; how many words have more."""
    digits, base = how.powers.size, how.powers[1]
    full, low = out.size // digits, digits // 2
    rows, planes = out[: full * digits].reshape(-1, digits), np.empty((digits, full), out.dtype)
    lower, upper = np.empty(full, F64), np.empty(full, F64)
    wrong = _halves(data[: 8 * full].view(np.uint64), how.powers, lower, upper)
    for j in range(low):
        _cut(lower, 1 / F64(how.powers[j + 1]), F64(base), planes[j])
    for j in range(digits - low):
        _cut(upper, 1 / F64(how.powers[j + 1]), F64(base), planes[low + j])
    for i in range(full):
        for j in range(digits):
            rows[i, j] = planes[j, i]
    rest, word = out[full * digits :], U64(0)
    for byte in range(data.size - 1, 8 * full - 1, -1):
        word = (word << U64(8)) | U64(data[byte])
    for j in range(rest.size):
        quotient = word // base
        rest[j] = word - quotient * base
        word = quotient
    return int(wrong + (word != U64(0)))


@jit
def _halves(
    words: NDArray[Any], powers: NDArray[Any], lower: NDArray[Any], upper: NDArray[Any]
) -> int:
    """Numbers of the first half of the digits, and of the others; how many words have more."""
    power = powers[powers.size // 2]
    most, inverse = powers[-1] * powers[1] - U64(1), 1 / F64(power)
    wrong = 0
    for i in range(words.size):
        good = words[i] <= most
        wrong += not good
        word = words[i] if good else U64(0)
        quotient = U64(F64(word) * inverse)  # off by one at most
        rest = np.int64(word - quotient * power)
        less, more = rest < 0, rest >= np.int64(power)
        quotient = quotient - U64(less) + U64(more)
        lower[i] = F64(rest + np.int64(power) * (np.int64(less) - np.int64(more)))
        upper[i] = F64(quotient)
    return wrong


@jit
def _cut(numbers: NDArray[Any], inverse: float, base: float, digits: NDArray[Any]) -> None:
    """Digit j of numbers below 2^40: the first behind the point of number / base^(j + 1)."""
    for i in range(numbers.size):
        fraction = (numbers[i] + 0.5) * inverse
        digits[i] = I32((fraction - np.floor(fraction)) * base)
