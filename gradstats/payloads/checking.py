"""CRC-32 of long bytes, by threads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache

from gradstats.kernels.threads import in_threads

POLYNOMIAL = 0xEDB88320  # of CRC-32; bit 31 - i is the coefficient of x^i
ONE, X = 1 << 31, 1 << 30


def crc32(data: bytes | memoryview, start: int = 0) -> int:
    """`zlib.crc32`, by several threads where there is much to read.

    The checksum of a and b together follows from theirs: with n bytes in b,
    crc(ab) = crc(a) · x^8n + crc(b), as polynomials over GF(2) modulo that of CRC-32.

    Args:
        data: the bytes.
        start: checksum of what is before them.

    Example:
        >>> crc32(b"123456789") == zlib.crc32(b"123456789") == 0xCBF43926
        True
    """
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")

    def work(chunks: Iterator[slice]) -> dict[int, tuple[int, int]]:
        return {c.start: (zlib.crc32(view[c]), c.stop - c.start) for c in chunks}

    parts = {place: part for each in in_threads(work, len(view)) for place, part in each.items()}
    for _, (checksum, nbytes) in sorted(parts.items()):
        start = _product(start, _power(8 * nbytes)) ^ checksum
    return start


@cache
def _power(n: int) -> int:
    """x^n modulo the polynomial."""
    power, square = ONE, X
    while n:
        if n & 1:
            power = _product(power, square)
        square = _product(square, square)
        n >>= 1
    return power


def _product(a: int, b: int) -> int:
    """a · b modulo the polynomial."""
    product = 0
    for shift in range(31, -1, -1):
        product ^= b if a >> shift & 1 else 0
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product
