"""Quantise and pack in triton.

A program makes words of consecutive symbols: it scales, finds each symbol among the boundaries,
and packs, so that no array of symbols is ever written. Norms are plain torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradstats.kernels import coding_eager
from gradstats.kernels.coding_eager import Rounding, boundaries, inverse_gaps
from gradstats.kernels.packing import packing

WORDS = 128  # that a program makes
MOST_BITS = 8  # of a symbol with bits of its own: eight of them are one word

bucket_norms = coding_eager.bucket_norms


@triton.jit
def _philox(key0, key1, counter):
    c0, c1, c2, c3 = counter, counter * 0, counter * 0, counter * 0
    k0, k1 = key0, key1
    for _ in range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = ((p1 >> 32) & 0xFFFFFFFF) ^ c1 ^ k0
        c1 = p1 & 0xFFFFFFFF
        c2 = ((p0 >> 32) & 0xFFFFFFFF) ^ c3 ^ k1
        c3 = p0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def _quantize(
    values,  # `[n]`
    inverse,  # float32 `[buckets]`
    bounds,  # float32 `[M]`, boundaries or the floats below inner levels
    levels,  # float64 `[L]`
    gaps,  # float64 `[L - 1]`
    key,  # `[2]`
    words,  # int64 `[n / group]`
    n,
    bucket,
    LEVELS: tl.constexpr,
    M: tl.constexpr,
    HALVINGS: tl.constexpr,
    GROUP: tl.constexpr,  # symbols of a word
    BASE: tl.constexpr,  # of its digits: L, or 2^bits
    STOCHASTIC: tl.constexpr,
    WORDS: tl.constexpr,
):
    which = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    word = tl.zeros([WORDS], tl.int64)
    power = tl.full([WORDS], 1, tl.int64)
    for j in range(GROUP):
        places = which * GROUP + j
        inside = places < n
        x = tl.load(values + places, mask=inside, other=0.0).to(tl.float32)
        y = x * tl.load(inverse + places // bucket, mask=inside, other=0.0)
        low = tl.zeros([WORDS], tl.int64)  # boundaries that are surely below
        high = tl.full([WORDS], M, tl.int64)
        for _ in range(HALVINGS):
            middle = (low + high) // 2
            open_ = low < high
            below = open_ & (tl.load(bounds + middle, mask=open_, other=0.0) < y)
            low = tl.where(below, middle + 1, low)
            high = tl.where(open_ & ~below, middle, high)
        symbol = low
        if STOCHASTIC:
            c0, c1, c2, c3 = _philox(tl.load(key), tl.load(key + 1), places // 4)
            lane = places % 4
            drawn = tl.where(lane == 0, c0, tl.where(lane == 1, c1, tl.where(lane == 2, c2, c3)))
            share = (y.to(tl.float64) - tl.load(levels + symbol)) * tl.load(gaps + symbol)
            symbol += (drawn.to(tl.float64) < share * 4294967296.0).to(tl.int64)
        symbol = tl.where(y != y, LEVELS // 2, symbol)
        word += tl.where(inside, symbol, 0) * power
        power *= BASE
    tl.store(words + which, word, mask=which * GROUP < n)


@triton.jit
def _add(
    words,  # int64 `[n / group]`
    scales,  # float32 `[buckets]`
    books,  # float32 `[buckets or 1, L]`
    out,  # `[n]`
    weight,
    n,
    bucket,
    LEVELS: tl.constexpr,
    GROUP: tl.constexpr,
    BASE: tl.constexpr,
    POWER: tl.constexpr,  # whether BASE is one of two
    OWN: tl.constexpr,  # whether every bucket has levels of its own
    WORDS: tl.constexpr,
):
    which = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    word = tl.load(words + which, mask=which * GROUP < n, other=0)
    for j in range(GROUP):
        places = which * GROUP + j
        inside = places < n
        if POWER:
            symbol = word & (BASE - 1)
            word = (word >> tl.cast(POWER, tl.int64)) & 0x7FFFFFFFFFFFFFFF
        else:
            unsigned = word.to(tl.uint64, bitcast=True)
            symbol = (unsigned % BASE).to(tl.int64)
            word = (unsigned // BASE).to(tl.int64, bitcast=True)
        symbol = tl.minimum(symbol, LEVELS - 1)  # never read behind the levels
        where = places // bucket
        row = where * LEVELS if OWN else where * 0
        level = tl.load(books + row + symbol, mask=inside, other=0.0)
        if not OWN:
            level *= tl.load(scales + where, mask=inside, other=0.0)
        before = tl.load(out + places, mask=inside, other=0.0)
        tl.store(out + places, before + (level * weight).to(before.dtype), mask=inside)


def pack(symbols: Tensor, levels: int) -> Tensor:
    """See `coding.pack`."""
    return coding_eager.pack(symbols, levels)


def unpack(packed: Tensor, n: int, levels: int) -> Tensor:
    """See `coding.unpack`."""
    return coding_eager.unpack(packed, n, levels)


def to_symbols(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.to_symbols`."""
    return coding_eager.to_symbols(values, how)


def quantize(values: Tensor, how: Rounding) -> Tensor:
    """See `coding.quantize`."""
    levels = how.levels
    rule, n = packing(len(levels)), len(values)
    if rule.bits > MOST_BITS and not rule.digits:
        return coding_eager.quantize(values, how)
    stochastic = how.rule == "stochastic"
    inner = levels[1:-1]
    bounds = boundaries(levels, how.rule)
    if stochastic:
        bounds = torch.nextafter(inner, torch.full_like(inner, -torch.inf))
    words = torch.zeros(triton.cdiv(n, rule.group), dtype=torch.int64, device=values.device)
    if n:
        drawn = torch.empty(2, dtype=torch.int64, device=values.device)
        for index, word in enumerate(how.key):
            drawn[index].fill_(word)  # a copy from the host would wait for the device
        tables = (bounds, levels.double(), inverse_gaps(levels), drawn, words)
        _quantize[(triton.cdiv(len(words), WORDS),)](
            values,
            how.inverse,
            *tables,
            n,
            how.bucket,
            LEVELS=len(levels),
            M=len(bounds),
            HALVINGS=len(bounds).bit_length(),
            GROUP=rule.group,
            BASE=rule.levels if rule.digits else 1 << rule.bits,
            STOCHASTIC=stochastic,
            WORDS=WORDS,
        )
    return _bytes(words, rule.bits if not rule.digits else 8)[: rule.nbytes(n)].contiguous()


def _bytes(words: Tensor, width: int) -> Tensor:
    """The first bytes of every word, one after the other."""
    return words.view(torch.uint8).view(-1, 8)[:, :width].reshape(-1)


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
    rule, n = packing(levels.shape[-1]), len(out)
    wide = rule.bits > MOST_BITS and not rule.digits
    if wide or out.dtype.itemsize == 2 or not n or offsets is not None:
        coding_eager.add_dequantized(packed, scales, bucket, levels, out, weight, offsets)
        return
    width = 8 if rule.digits else rule.bits
    count = triton.cdiv(n, rule.group)
    filled = torch.nn.functional.pad(packed, (0, count * width - len(packed)))
    words = torch.nn.functional.pad(filled.view(-1, width), (0, 8 - width)).contiguous()
    _add[(triton.cdiv(count, WORDS),)](
        words.view(torch.int64).view(-1),
        levels if scales is None else scales,
        levels,
        out,
        weight,
        n,
        bucket,
        LEVELS=levels.shape[-1],
        GROUP=rule.group,
        BASE=rule.levels if rule.digits else 1 << rule.bits,
        POWER=0 if rule.digits else rule.bits,
        OWN=scales is None,
        WORDS=WORDS,
    )
