"""Rotate at random: the randomised Hadamard transform of blocks, and back.

As in `gradstats.kernels`, the same functions are in `rotating_eager` (torch, the definition, on
any device) and `rotating_cpu` (numba); their numbers have the same bits.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels import coding, rotating_eager
from gradstats.kernels.forms import in_numba
from gradstats.kernels.ranges import in_range

SQUARES = 50  # exponent of 2, up to which squares and their sums are far from the ends of float32


class Quantized(NamedTuple):
    """Rotated blocks, rounded to levels times their scales.

    Attributes:
        packed: symbols, see `coding.pack`.
        scales: float32 `[⌈n/B⌉]`, the root mean square x of a block.
        values_sq: Σx², float64 `[⌈n/B⌉]`; this and the next in a unit of the block.
        products: Σxq over what is rounded and what it is rounded to.
        levels_sq: Σq².
        unit: of the scales, a power of two.
    """

    packed: Tensor
    scales: Tensor
    values_sq: Tensor
    products: Tensor
    levels_sq: Tensor
    unit: float


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


def quantize(values: Tensor, block: int, key: tuple[int, int], levels: Tensor) -> Quantized:
    """Rotate, and round to the nearest levels times the root mean square of each block.

    Args:
        values: floating point `[n]`, contiguous.
        block: B, a power of two.
        key: of the signs.
        levels: float32 `[L]`, strictly rising.
    """
    _check_block(block)
    if in_numba(values) and _takes(block, levels):
        from gradstats.kernels import rotating_cpu

        packed, sums = rotating_cpu.quantize(values, block, key, levels)
        values_sq, roots, products, levels_sq = sums.unbind(1)
        usual = (roots >= 2.0**-SQUARES) & (roots <= 2.0**SQUARES)
        # one usual block is enough to know that the gradient's unit is 1
        if bool(usual.any() & (usual | (values_sq == 0)).all()):
            return Quantized(packed, roots.float(), values_sq, products, levels_sq, 1.0)
    return _quantized(values, block, key, levels)


def _quantized(values: Tensor, block: int, key: tuple[int, int], levels: Tensor) -> Quantized:
    """The definition, a step at a time."""
    values, unit = in_range(values)
    rotated = rotate(values, block, key)
    scales = coding.bucket_norms(rotated, block, "l2") / block**0.5
    rotated, steady = coding.steadied(rotated, scales, block, SQUARES)
    packed = coding.quantize(rotated, steady, block, levels, rounding="nearest")
    rounded = coding.dequantize(packed, len(rotated), steady, block, levels)
    x, q = (each.double().view(-1, block) for each in (rotated, rounded))
    xx, xq, qq = (torch.linalg.vecdot(*pair) for pair in ((x, x), (x, q), (q, q)))
    return Quantized(packed, scales, xx, xq, qq, unit)


def decode(
    packed: Tensor,
    n: int,
    scales: Tensor | None,
    block: int,
    levels: Tensor,
    key: tuple[int, int],
) -> Tensor:
    """Turn back the levels of packed symbols times the scales of their blocks: float32 `[n]`.

    Args:
        packed: from `quantize`.
        n: number of elements.
        scales: float32 `[⌈n/B⌉]`; None where levels are those of blocks.
        block: B, a power of two.
        levels: float32 `[L]`, or `[⌈n/B⌉, L]`.
        key: of the signs.
    """
    if scales is not None and in_numba(packed) and _takes(block, levels):
        from gradstats.kernels import rotating_cpu

        # numpy asks for large pages, which take half as long to fill for the first time
        out = torch.from_numpy(np.empty(n, np.float32))
        rotating_cpu.decode(packed, scales, block, levels, key, out, None)
        return out
    rotated = coding.dequantize(packed, -(-n // block) * block, scales, block, levels)
    return unrotate(rotated, n, block, key)


def add_decoded(
    packed: Tensor,
    scales: Tensor | None,
    block: int,
    levels: Tensor,
    key: tuple[int, int],
    out: Tensor,
    weight: float,
) -> None:
    """Add `weight` times what `decode` returns to `out`, floating point `[n]`."""
    plain = out.dtype == torch.float32 and out.is_contiguous()
    if weight and plain and scales is not None and in_numba(packed) and _takes(block, levels):
        from gradstats.kernels import rotating_cpu

        rotating_cpu.decode(packed, scales, block, levels, key, out, weight)
    else:
        out.add_(decode(packed, out.numel(), scales, block, levels, key), alpha=weight)


def _takes(block: int, levels: Tensor) -> bool:
    from gradstats.kernels import rotating_cpu

    return rotating_cpu.takes(block, levels.numel())


def _check_block(block: int) -> None:
    if block < 1 or block & (block - 1):
        raise ValueError(f"block must be a power of two, got {block}")


def _form(tensor: Tensor) -> ModuleType:
    if in_numba(tensor):
        from gradstats.kernels import rotating_cpu

        return rotating_cpu
    return rotating_eager
