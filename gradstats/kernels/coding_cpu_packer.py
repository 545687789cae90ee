"""How symbols lie in bytes, as numba takes it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit
from gradstats.kernels.packing import packing

MOST_JOINED = 256  # values of two symbols that one byte holds


class Packer(NamedTuple):
    """How symbols lie in bytes.

    Attributes:
        levels: L.
        bits: of a symbol, where each has its own; 0 where symbols stay as they are.
        powers: uint64, 1, B, B², … of the digits of a 64-bit number; empty where there are bits.
        halvings: h; a digit in base B = L^(2^h), below 256, is 2^h symbols. Bytes are joined and
            parted in lanes, so that fewer digits are left.
    """

    levels: int
    bits: int
    powers: NDArray[np.uint64]
    halvings: int


@lru_cache
def packer_of(levels: int) -> Packer:
    """How symbols of so many levels lie in bytes."""
    rule = packing(levels)
    base, digits, halvings = levels, rule.digits, 0
    while digits and digits % 2 == 0 and base * base <= MOST_JOINED:
        base, digits, halvings = base * base, digits // 2, halvings + 1
    powers = np.array([base**i for i in range(digits)], np.uint64)
    return Packer(levels, 0 if rule.digits else rule.bits, powers, halvings)


def count_long(data: NDArray[np.uint8], how: Packer, n: int) -> int:
    """How many numbers of n packed symbols have more than their digits."""
    digits = how.powers.size << how.halvings
    full, rest = divmod(n, digits)
    last = int.from_bytes(data[8 * full :].tobytes(), "little")
    wrong = np.count_nonzero(data[: 8 * full].view("<u8") > np.uint64(how.levels**digits - 1))
    return int(wrong) + int(last >= how.levels**rest)


@jit
def byte_of(how: Packer, symbol: int) -> int:
    """Index of the first byte of a symbol that begins a group."""
    digits = how.powers.size << how.halvings
    if digits:
        return symbol // digits * 8
    return symbol * how.bits // 8 if how.bits else symbol
