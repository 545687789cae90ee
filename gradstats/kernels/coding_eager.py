"""The codes as plain torch, and numpy where torch has no unsigned words: the definition."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.packing import packing
from gradstats.kernels.philox import philox
from gradstats.kernels.ranges import saturated


class Rounding(NamedTuple):
    """How elements become symbols.

    Attributes:
        inverse: float32 `[⌈n/bucket⌉]`, inverse scales.
        bucket: elements that share a scale.
        levels: float32 `[L]`.
        rule: one of `coding.ROUNDINGS`.
        key: of the random numbers.
    """

    inverse: Tensor
    bucket: int
    levels: Tensor
    rule: str
    key: tuple[int, int]


def pack(symbols: Tensor, levels: int) -> Tensor:
    """See `coding.pack`."""
    rule, n = packing(levels), symbols.numel()
    integers = symbols.cpu().numpy().astype(np.uint64)
    if rule.digits:
        powers = np.array([levels**i for i in range(rule.digits)], np.uint64)
        words = (_filled(integers, rule.digits) * powers).sum(axis=1, dtype=np.uint64)
        data = words.astype("<u8").view(np.uint8)[: rule.nbytes(n)]
    else:
        bits = integers[:, np.newaxis] >> np.arange(rule.bits, dtype=np.uint64) & np.uint64(1)
        data = np.packbits(bits.astype(np.uint8), bitorder="little")
    return torch.from_numpy(data.copy()).to(symbols.device)


def unpack(packed: Tensor, n: int, levels: int) -> Tensor:
    """See `coding.unpack`."""
    rule, data = packing(levels), packed.cpu().numpy()
    if rule.digits:
        words = _filled(data, 8).copy().view("<u8").ravel()
        powers = np.array([levels**i for i in range(rule.digits)], np.uint64)
        digits = words[:, np.newaxis] // powers
        if (digits[:, -1] >= levels).any():
            raise ValueError(f"a packed word must be below {levels}^{rule.digits}")
        symbols = (digits % np.uint64(levels)).ravel()
    else:
        bits = np.unpackbits(data, bitorder="little")
        weights = np.uint64(1) << np.arange(rule.bits, dtype=np.uint64)
        symbols = (_filled(bits, rule.bits) * weights).sum(axis=1, dtype=np.uint64)
        if bits[n * rule.bits :].any():
            raise ValueError("bits behind the last symbol must be 0")
    if symbols[n:].any() or (symbols >= levels).any():
        raise ValueError(f"a symbol must be below {levels}, and 0 behind the last")
    kind = np.uint8 if levels <= 256 else np.int32
    return torch.from_numpy(symbols[:n].astype(kind)).to(packed.device)


def _filled(data: NDArray[Any], width: int) -> NDArray[Any]:
    """`[rows, width]`, the last row filled up with zeros."""
    return np.pad(data, (0, -data.size % width)).reshape(-1, width)


def quantize(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.quantize`."""
    return pack(to_symbols(values, how), len(how.levels))


def to_symbols(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.to_symbols`."""
    levels = how.levels
    y = values.to(torch.float32) * spread(how.inverse, how.bucket, values.numel())
    if how.rule == "stochastic":
        below = torch.searchsorted(levels, y, right=True).sub(1).clamp(0, len(levels) - 2)
        share = (y.double() - levels.double()[below]) * inverse_gaps(levels)[below]
        symbols = below + (words(len(y), how.key, y.device) < share * 2.0**32)
    else:
        symbols = torch.searchsorted(boundaries(levels, how.rule), y)
    kind = torch.uint8 if len(levels) <= 256 else torch.int32
    return torch.where(y.isnan(), len(levels) // 2, symbols).to(kind)


def spread(of_buckets: Tensor, bucket: int, n: int) -> Tensor:
    """What belongs to buckets, for every element: `[n]`."""
    return of_buckets.repeat_interleave(bucket)[:n]


def boundaries(levels: Tensor, rounding: str) -> Tensor:
    """Float32 `[L - 1]`: a y above the first j of them, and not above the next, is symbol j."""
    wide = levels.double()
    middle = (wide[:-1] + wide[1:]) / 2
    rounded = middle.to(torch.float32)
    down = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    if rounding == "nearest":
        goes_up = torch.zeros_like(rounded, dtype=torch.bool)
    else:
        steps = torch.arange(len(levels), device=levels.device) - len(levels) // 2
        goes_up = steps[1:] % 2 == 0  # the upper of the two is even
    # a boundary above the middle would keep a y below that is nearer to the upper level
    above = (rounded.double() > middle) | (goes_up & (rounded.double() == middle))
    return torch.where(above, down, rounded)


def inverse_gaps(levels: Tensor) -> Tensor:
    """Float64 `[L - 1]`: 1 / (l_{j+1} - l_j)."""
    return 1 / levels.double().diff()


def words(n: int, key: tuple[int, int], device: torch.device) -> Tensor:
    """The first n 32-bit words under a key, int64."""
    drawn = philox(key, torch.arange(-(-n // 4), device=device))
    return torch.stack(drawn, dim=1).reshape(-1)[:n]


def add_dequantized(
    packed: Tensor,
    scales: Tensor | None,
    bucket: int,
    levels: Tensor,
    out: Tensor,
    weight: float,
) -> None:
    """See `coding.add_dequantized`."""
    n = out.numel()
    symbols = unpack(packed, n, levels.shape[-1]).long()
    if scales is None:
        decoded = levels[torch.arange(n, device=packed.device) // bucket, symbols]
    else:
        decoded = levels[symbols] * spread(scales, bucket, n)
    out.add_(decoded, alpha=weight)


def bucket_norms(values: Tensor, bucket: int, kind: str) -> Tensor:
    """See `coding.bucket_norms`."""
    n = values.numel()
    if not n:
        return torch.zeros(0, device=values.device)
    rows = torch.nn.functional.pad(values.double().abs(), (0, -n % bucket)).view(-1, bucket)
    if kind == "l2":
        return saturated(rows.square().sum(dim=1).sqrt(), torch.float32)
    if kind == "max":
        return saturated(rows.amax(dim=1), torch.float32)
    sizes = torch.full((len(rows),), bucket, device=values.device)
    sizes[-1] = n - (len(rows) - 1) * bucket
    return saturated(rows.sum(dim=1) / sizes, torch.float32)


def rotate(values: Tensor, block: int, key: tuple[int, int]) -> Tensor:
    """See `coding.rotate`."""
    filled = torch.nn.functional.pad(values.to(torch.float32), (0, -values.numel() % block))
    return _hadamard(filled * _signs(len(filled), key, filled.device), block)


def unrotate(rotated: Tensor, n: int, block: int, key: tuple[int, int]) -> Tensor:
    """See `coding.unrotate`."""
    return (_hadamard(rotated, block) * _signs(len(rotated), key, rotated.device))[:n]


def _signs(n: int, key: tuple[int, int], device: torch.device) -> Tensor:
    bits = words(-(-n // 32), key, device).unsqueeze(1) >> torch.arange(32, device=device) & 1
    return (1 - 2 * bits.reshape(-1)[:n]).to(torch.float32)


def _hadamard(x: Tensor, block: int) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of every block, `[n]`."""
    step = 1
    while step < block:
        pairs = x.view(-1, 2, step)
        x = torch.cat([pairs[:, :1] + pairs[:, 1:], pairs[:, :1] - pairs[:, 1:]], dim=1).view(-1)
        step *= 2
    return x / math.sqrt(block)
