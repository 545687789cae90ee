"""The byte layout of integers below L.

Either ⌊64/log₂ L⌋ of them are the digits of a 64-bit number in base L, the first the least
significant, or each has ⌈log₂ L⌉ bits, little-endian; whichever is shorter. Ternary symbols take
1.6 bits. A last number that is not full has as many bytes as its digits need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

WORD = 64


@dataclass(frozen=True)
class Packing:
    """The packing of symbols of one alphabet.

    Attributes:
        levels: L.
        bits: of a symbol, where each has its own.
        digits: in a 64-bit number; 0 where each symbol has bits of its own.
    """

    levels: int
    bits: int
    digits: int

    @property
    def group(self) -> int:
        """Symbols that fill whole bytes."""
        return self.digits or 8

    def nbytes(self, n: int) -> int:
        """Bytes of n symbols."""
        if not self.digits:
            return -(-n * self.bits // 8)
        full, rest = divmod(n, self.digits)
        last: int = self.levels**rest - 1
        return full * (WORD // 8) + -(-last.bit_length() // 8)


@cache
def packing(levels: int) -> Packing:
    """Return the packing of symbols of an alphabet of L levels.

    Raises:
        ValueError: fewer than 2 or more than 65,536 levels.
    """
    if not 2 <= levels <= 1 << 16:
        raise ValueError(f"levels must be 2 to 65,536, got {levels}")
    bits = (levels - 1).bit_length()
    digits = WORD // bits
    while levels ** (digits + 1) <= 1 << WORD:
        digits += 1
    return Packing(levels, bits, digits if WORD < digits * bits else 0)


def packed_nbytes(n: int, levels: int) -> int:
    """Bytes of n packed symbols."""
    return packing(levels).nbytes(n)


def bits_per_symbol(levels: int) -> float:
    """Bits of a symbol among many.

    Example:
        >>> [bits_per_symbol(levels) for levels in (2, 3, 11, 15, 16)]
        [1.0, 1.6, 3.5555555555555554, 4.0, 4.0]
    """
    rule = packing(levels)
    return WORD / rule.digits if rule.digits else float(rule.bits)
