"""Counter-based random numbers: the same on every device."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

LOW = 0xFFFFFFFF
ROUNDS = 10
Word = TypeVar("Word", int, Tensor)


def philox(key: tuple[int, int], counter: Word) -> tuple[Word, Word, Word, Word]:
    """Philox-4x32-10 of the counter (counter, 0, 0, 0): four 32-bit words.

    Triton's `tl.randint` is the first word under the same key and offset.

    Args:
        key: two 32-bit words.
        counter: below 2^32; an int, or an int64 tensor of any shape.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Example:
        >>> " ".join(f"{word:08x}" for word in philox((0, 0), 0))
        '6627e8d5 e169c58d bc57ac4c 9b00dbd8'
    """
    zero = counter * 0
    c0, c1, c2, c3 = counter & LOW, zero, zero, zero
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap, but their 64 bits are those of the unsigned product
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & LOW) ^ c1 ^ k0,
            p1 & LOW,
            ((p0 >> 32) & LOW) ^ c3 ^ k1,
            p0 & LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3
