"""Rotate at random: the randomised Hadamard transform of blocks, and back.

As in `gradstats.kernels`, the same functions are in `rotating_eager` (torch, the definition, on
any device) and `rotating_cpu` (numba); their numbers have the same bits.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from gradstats.kernels import rotating_eager
from gradstats.kernels.forms import in_numba


def rotate(values: Tensor, block: int, key: tuple[int, int]) -> Tensor:
    r"""The randomised Hadamard transform of every block: :math:`\frac{1}{\sqrt B} H D x`.

    D has random signs: element i is negated where bit i mod 32 is set in word ⌊i/32⌋ mod 4 of
    Philox at counter ⌊i/128⌋.

    Args:
        values: floating point `[n]`, contiguous; the last block is filled up with zeros.
        block: B, a power of two.
        key: of the signs.

    Returns:
        float32 `[⌈n/B⌉ B]`.

    Raises:
        ValueError: the block is not a power of two.
    """
    _check_block(block)
    rotated: Tensor = _form(values).rotate(values, block, key)
    return rotated


def unrotate(rotated: Tensor, n: int, block: int, key: tuple[int, int]) -> Tensor:
    """The inverse of `rotate`, float32 `[n]`."""
    _check_block(block)
    values: Tensor = _form(rotated).unrotate(rotated, n, block, key)
    return values


def _check_block(block: int) -> None:
    if block < 1 or block & (block - 1):
        raise ValueError(f"block must be a power of two, got {block}")


def _form(tensor: Tensor) -> ModuleType:
    if in_numba(tensor):
        from gradstats.kernels import rotating_cpu

        return rotating_cpu
    return rotating_eager
