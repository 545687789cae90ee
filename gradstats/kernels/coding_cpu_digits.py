"""The loops between symbols and the digits of 64-bit numbers, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.coding_cpu_packer import Packer
from gradstats.kernels.compiling import jit

U8, U16, I32, U32, U64, F64 = np.uint8, np.uint16, np.int32, np.uint32, np.uint64, np.float64


@jit
def pack_digits(symbols: NDArray[Any], how: Packer, out: NDArray[Any]) -> None:
    """Write symbols into all bytes of `out`."""
    count = how.powers.size << how.halvings
    full = symbols.size // count
    joined, base = symbols[: full * count], how.levels
    for _ in range(how.halvings):
        joined, base = _join(joined, base), base * base
    _to_words(joined, how.powers, out[: 8 * full].view(np.uint64))
    rest, word = symbols[full * count :], U64(0)
    for j in range(rest.size - 1, -1, -1):
        word = word * U64(how.levels) + U64(rest[j])
    for byte in range(8 * full, out.size):
        out[byte] = word & U64(255)
        word >>= U64(8)


@jit
def _to_words(symbols: NDArray[Any], powers: NDArray[Any], words: NDArray[Any]) -> None:
    digits, base = powers.size, powers[1]
    low, rows = digits // 2, symbols.reshape(-1, digits)
    for i in range(words.size):  # two halves, neither of which waits for the other
        row = rows[i]
        lower, upper = U64(0), U64(row[-1]) if digits % 2 else U64(0)
        for j in range(low - 1, -1, -1):
            lower = lower * base + U64(row[j])
            upper = upper * base + U64(row[low + j])
        words[i] = lower + upper * powers[low]


@jit
def _join(symbols: NDArray[Any], base: int) -> NDArray[Any]:
    """Two bytes a, b as one: a + base b."""
    joined, factor = np.empty(symbols.size // 2, symbols.dtype), U8(base)
    two = symbols.view(np.uint16)
    for i in range(joined.size):
        joined[i] = U8(U8(two[i]) + U8(U8(two[i] >> U16(8)) * factor))
    return joined


@jit
def _part(joined: NDArray[Any], base: int, parted: NDArray[Any]) -> None:
    """The inverse of `_join`."""
    two, inverse, factor = parted.view(np.uint16), U32((1 << 16) // base + 1), U16(base)
    for i in range(joined.size):
        upper = U16((U32(joined[i]) * inverse) >> U32(16))
        two[i] = U16(U16(joined[i]) - U16(upper * factor)) | U16(upper << U16(8))


@jit
def unpack_digits(data: NDArray[Any], how: Packer, out: NDArray[Any]) -> int:
    """Read symbols from all bytes of `data`; how many words have more digits. Those become 0."""
    count = how.powers.size << how.halvings
    full = out.size // count
    whole = out[: full * count]
    joined = np.empty(full * how.powers.size, out.dtype) if how.halvings else whole
    wrong = _from_words(data[: 8 * full].view(np.uint64), how.powers, joined)
    for halving in range(how.halvings - 1, -1, -1):
        parted = np.empty(2 * joined.size, out.dtype) if halving else whole
        _part(joined, how.levels ** (1 << halving), parted)
        joined = parted
    rest, word = out[full * count :], U64(0)
    for byte in range(data.size - 1, 8 * full - 1, -1):
        word = (word << U64(8)) | U64(data[byte])
    for j in range(rest.size):
        quotient = word // U64(how.levels)
        rest[j] = word - quotient * U64(how.levels)
        word = quotient
    return int(wrong + (word != U64(0)))


@jit
def _from_words(words: NDArray[Any], powers: NDArray[Any], out: NDArray[Any]) -> int:
    """Digits of words, without a division; how many words have more."""
    digits, base, full = powers.size, powers[1], words.size
    low, rows = digits // 2, out.reshape(-1, digits)
    planes = np.empty((digits, full), out.dtype)
    lower, upper = np.empty(full, F64), np.empty(full, F64)
    wrong = _halves(words, powers, lower, upper)
    for j in range(low):
        _cut(lower, 1 / F64(powers[j + 1]), F64(base), planes[j])
    for j in range(digits - low):
        _cut(upper, 1 / F64(powers[j + 1]), F64(base), planes[low + j])
    for i in range(full):
        for j in range(digits):
            rows[i, j] = planes[j, i]
    return int(wrong)


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
