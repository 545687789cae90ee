"""The codes as plain torch on any device: the definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradstats.kernels.packing import WORD, Packing, packing
from gradstats.kernels.philox import philox
from gradstats.kernels.ranges import saturated

MOST_SIGNED = (1 << 63) - 1


class Rounding(NamedTuple):
    """How elements become symbols.

    Attributes:
        scales: float32 `[⌈n/bucket⌉]`.
        bucket: elements that share a scale.
        levels: float32 `[L]`.
        rule: one of `coding.ROUNDINGS`.
        key: of the random numbers.
    """

    scales: Tensor
    bucket: int
    levels: Tensor
    rule: str
    key: tuple[int, int]

    @property
    def inverse(self) -> Tensor:
        """1 / scale, 0 for a scale of 0."""
        return torch.where(self.scales == 0, 0, 1 / self.scales)


def pack(symbols: Tensor, levels: int) -> Tensor:
    """See `coding.pack`; the symbols are not checked."""
    rule, n = packing(levels), symbols.numel()
    filled = torch.nn.functional.pad(symbols.reshape(-1).long(), (0, -n % rule.group))
    rows = filled.view(-1, rule.group)
    if rule.digits:
        words = _of_digits(rows, levels)
    else:
        parts = range(-(-rule.bits // 8))
        words = torch.stack([_of_bits(rows, rule.bits, WORD * part) for part in parts], dim=1)
    of_rows = words.view(torch.uint8).view(len(rows), words.shape[1] * 8)
    return of_rows[:, : _width(rule)].reshape(-1)[: rule.nbytes(n)].clone()


def _width(rule: Packing) -> int:
    """Bytes of a group of symbols."""
    return WORD // 8 if rule.digits else rule.bits


def _of_digits(rows: Tensor, levels: int) -> Tensor:
    """Words with these digits, the first the least significant: int64 `[rows, 1]`."""
    words = torch.zeros_like(rows[:, 0])
    for digits in reversed(rows.unbind(1)):
        words = words * levels + digits  # wraps to the 64 bits of the unsigned number
    return words[:, None]


def _of_bits(rows: Tensor, bits: int, first: int) -> Tensor:
    """Of the bits of eight symbols in a row the 64 from `first` on: int64 `[rows]`."""
    words = torch.zeros_like(rows[:, 0])
    for index, symbols in enumerate(rows.unbind(1)):
        shift = index * bits - first
        if -bits < shift < WORD:
            words |= symbols << shift if shift >= 0 else symbols >> -shift
    return words


def unpack(packed: Tensor, n: int, levels: int) -> Tensor:
    """See `coding.unpack`."""
    symbols, rest = _symbols(packed, n, levels)
    wrong = (symbols >= levels).any() | (symbols[n:] != 0).any() | (rest != 0).any()
    if wrong:
        raise ValueError(f"a symbol must be below {levels}, and 0 behind the last")
    return symbols[:n].to(_dtype(levels))


def unpack_trusted(packed: Tensor, n: int, levels: int) -> Tensor:
    """As `unpack`, but nothing is checked: what is no symbol becomes the last one."""
    symbols, _ = _symbols(packed, n, levels)
    return symbols[:n].clamp(max=levels - 1).to(_dtype(levels))


def _symbols(packed: Tensor, n: int, levels: int) -> tuple[Tensor, Tensor]:
    """Int64 symbols of whole groups, and what is left of the words of digits."""
    rule = packing(levels)
    width, rows = _width(rule), -(-n // rule.group)
    filled = torch.nn.functional.pad(packed, (0, rows * width - packed.numel()))
    of_rows = torch.nn.functional.pad(filled.view(rows, width), (0, -width % 8))
    words = of_rows.contiguous().view(-1).view(torch.int64).view(rows, -(-width // 8))
    if rule.digits:
        return _digits(words[:, 0], levels, rule.digits)
    symbols = [_bits(words, rule.bits, index) for index in range(rule.group)]
    return torch.stack(symbols, dim=1).view(-1), words.new_zeros(0)


def _digits(words: Tensor, levels: int, count: int) -> tuple[Tensor, Tensor]:
    """Digits of words, and the quotient behind the last."""
    quotient = ((words >> 1) & MOST_SIGNED) // levels * 2  # of words without a sign
    rest = words - quotient * levels
    quotient += rest >= levels
    digits = [torch.where(rest >= levels, rest - levels, rest)]
    for _ in range(count - 1):
        digits.append(quotient % levels)
        quotient = quotient // levels
    return torch.stack(digits, dim=1).view(-1), quotient


def _bits(words: Tensor, bits: int, index: int) -> Tensor:
    """One symbol of eight in a row of words."""
    part, shift = divmod(index * bits, WORD)
    symbols = words[:, part] >> shift
    if shift + bits > WORD:  # the rest of its bits are in the next word
        symbols = symbols & ((1 << (WORD - shift)) - 1) | words[:, part + 1] << (WORD - shift)
    return symbols & ((1 << bits) - 1)


def _dtype(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int32


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
    return torch.where(y.isnan(), len(levels) // 2, symbols).to(_dtype(len(levels)))


def spread(of_buckets: Tensor, bucket: int, n: int) -> Tensor:
    """What belongs to buckets, for every element: `[n]`."""
    return of_buckets.repeat_interleave(bucket)[:n]


def times_of_bucket(values: Tensor, factors: Tensor, bucket: int) -> Tensor:
    """Values times what belongs to their buckets, `[n]`."""
    rows = torch.nn.functional.pad(values, (0, -values.numel() % bucket)).view(-1, bucket)
    return (rows * factors[:, None]).view(-1)[: values.numel()]


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
    offsets: Tensor | None = None,
) -> None:
    """See `coding.add_dequantized`."""
    n = out.numel()
    symbols = unpack_trusted(packed, n, levels.shape[-1]).long()
    if scales is None:
        decoded = levels[torch.arange(n, device=packed.device) // bucket, symbols]
    else:
        decoded = levels[symbols] * spread(scales, bucket, n)
    if offsets is not None:
        decoded = decoded + spread(offsets, bucket, n)
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
