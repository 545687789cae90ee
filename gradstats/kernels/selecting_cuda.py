"""The k largest in triton.

The k-th largest of a sample gives a magnitude that the k-th largest surely reaches. The elements
from there on, little more than k, are collected in one pass and sorted. Where the sample was
wrong, or too many elements are equal, a radix select does it: passes over some 11 bits of the
magnitudes each narrow down the k-th largest, and a last one writes the k elements in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradstats.kernels.counting_cuda import BLOCK, COUNTED, OPTIONS, most_programs
from gradstats.kernels.grid import INFINITY, INTEGERS, round_down

DIGIT = 11  # bits that a pass counts
SAMPLE = 1 << 16  # elements of the sample
SIGMAS = 6.0  # by which more of the sample are taken than their share


@triton.jit
def _magnitude(patterns, places, inside, INFINITE: tl.constexpr, MASK: tl.constexpr):
    # finite < inf < NaN, and all NaN are equal
    bits = tl.load(patterns + places, mask=inside, other=0).to(tl.int64) & MASK
    return tl.minimum(bits, INFINITE + 1)


@triton.jit
def _digits(
    patterns,  # `[n]`
    prefix,  # `[1]` the leading bits of the k-th magnitude
    counts,  # `[programs, BINS]`
    n,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
    INFINITE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wanted = tl.load(prefix)
    row = counts + tl.program_id(0) * BINS
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        places = tl.full([BLOCK], BLOCK, tl.int64) * block + tl.arange(0, BLOCK)
        inside = places < n
        digits = _magnitude(patterns, places, inside, INFINITE, MASK) >> SHIFT
        wanted_ones = inside & (digits // BINS == wanted)
        tl.atomic_add(row + digits % BINS, 1, mask=wanted_ones, sem="relaxed")


@triton.jit
def _classes(
    patterns,
    kth,  # `[1]` the k-th magnitude
    above,  # `[blocks]` elements of a block that are larger
    equal,  # `[blocks]` and as large
    n,
    INFINITE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    bits = _magnitude(patterns, places, inside, INFINITE, MASK)
    limit = tl.load(kth)
    tl.store(above + tl.program_id(0), tl.sum((inside & (bits > limit)).to(tl.int64)))
    tl.store(equal + tl.program_id(0), tl.sum((inside & (bits == limit)).to(tl.int64)))


@triton.jit
def _write_largest(
    values,
    patterns,
    kth,
    missing,  # `[1]` how many of the equal ones are taken: the first
    above,  # `[blocks]` larger elements before a block
    equal,  # `[blocks]` equal elements before a block
    indices,  # `[k]`
    out,  # `[k]`
    n,
    INFINITE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    bits = _magnitude(patterns, places, inside, INFINITE, MASK)
    limit, most = tl.load(kth), tl.load(missing)
    larger = (inside & (bits > limit)).to(tl.int64)
    same = (inside & (bits == limit)).to(tl.int64)
    larger_before = tl.load(above + tl.program_id(0)) + tl.cumsum(larger) - larger
    same_before = tl.load(equal + tl.program_id(0)) + tl.cumsum(same) - same
    chosen = (larger > 0) | ((same > 0) & (same_before < most))
    order = larger_before + tl.minimum(same_before, most)
    tl.store(indices + order, places, mask=chosen)
    tl.store(out + order, tl.load(values + places, mask=chosen), mask=chosen)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`; one synchronisation, for the number of candidates."""
    k = min(k, len(values))
    if 0 < k < len(values) // 4 and len(values) > 4 * SAMPLE:
        indices, near = above(values, _surely_below(values, k))
        if k <= len(near) <= 4 * (k + SAMPLE):
            return _largest_of(indices, near, k)
    return _by_radix(values, k)


def _magnitudes(values: Tensor) -> Tensor:
    """Integers in the order of magnitude: finite < inf < NaN, and all NaN are equal."""
    bits = 8 * values.dtype.itemsize - 1
    wide = torch.int32 if bits < 32 else torch.int64
    patterns = values.view(INTEGERS[values.dtype.itemsize]).to(wide) & ((1 << bits) - 1)
    return patterns.clamp(max=INFINITY[values.dtype] + 1)


def _surely_below(values: Tensor, k: int) -> Tensor:
    """A limit `[1]` that more than k elements exceed, unless the sample is odd by `SIGMAS`."""
    sample = values[:: len(values) // SAMPLE].contiguous()
    share = k / len(values)
    expected = share * len(sample)
    rank = int(expected + SIGMAS * (expected * (1 - share)) ** 0.5 + 10)
    reached = _magnitudes(sample).sort(descending=True).values[rank : rank + 1]
    # the pattern before it; that of 0 has none, and becomes a NaN, which every element exceeds
    return (reached - 1).to(INTEGERS[values.dtype.itemsize]).view(values.dtype)


def _largest_of(indices: Tensor, near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the candidates, in their order; of equal ones the first."""
    magnitudes = _magnitudes(near)
    kth = magnitudes.sort(descending=True).values[k - 1]
    equal = magnitudes == kth
    larger = magnitudes > kth
    chosen = larger | (equal & (equal.cumsum(0) <= k - larger.sum()))
    target = torch.where(chosen, chosen.cumsum(0) - 1, k)  # place k takes what is not chosen
    ordered = torch.empty(k + 1, dtype=torch.int64, device=near.device).scatter_(
        0, target, indices
    )
    kept = torch.empty(k + 1, dtype=near.dtype, device=near.device).scatter_(0, target, near)
    return ordered[:k], kept[:k]


def _by_radix(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same for any values; the host does not wait for the device."""
    n, device = len(values), values.device
    indices = torch.empty(k, dtype=torch.int64, device=device)
    out = torch.empty(k, dtype=values.dtype, device=device)
    if not k:
        return indices, out
    patterns = values.view(INTEGERS[values.dtype.itemsize])
    bits = 8 * values.dtype.itemsize - 1
    constants = {"INFINITE": INFINITY[values.dtype], "MASK": (1 << bits) - 1, "BLOCK": BLOCK}
    blocks = triton.cdiv(n, BLOCK)
    kth = torch.zeros(1, dtype=torch.int64, device=device)
    left = torch.full((1,), k, dtype=torch.int64, device=device)  # of the k, below what is known
    while bits:
        width = min(DIGIT, bits)
        bits -= width
        programs = min(triton.cdiv(n, COUNTED), most_programs(device))
        own = torch.zeros((programs, 1 << width), dtype=torch.int32, device=device)
        sizes = {**constants, "SHIFT": bits, "BINS": 1 << width, "BLOCK": COUNTED}
        _digits[(programs,)](patterns, kth, own, n, **sizes, num_warps=4)
        counts = own.sum(0)
        from_top = counts.flip(0).cumsum(0)
        skipped = torch.searchsorted(from_top, left)  # digits that are larger than the k-th's
        left = left - torch.where(skipped > 0, from_top[(skipped - 1).clamp(min=0)], 0)
        kth = (kth << width) + (len(counts) - 1 - skipped)
    above, equal = torch.zeros((2, blocks), dtype=torch.int64, device=device)
    _classes[(blocks,)](patterns, kth, above, equal, n, **constants, **OPTIONS)
    starts = above.cumsum(0) - above, equal.cumsum(0) - equal
    where = (values, patterns, kth, left, *starts, indices, out)
    _write_largest[(blocks,)](*where, n, **constants, **OPTIONS)
    return indices, out


@triton.jit
def _above(values, limit, kept, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values + places, mask=places < n, other=0.0)
    above = ~(tl.abs(x) <= tl.load(limit))
    tl.store(kept + tl.program_id(0), tl.sum((above & (places < n)).to(tl.int32)))


@triton.jit
def _write(values, limit, starts, indices, out, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values + places, mask=places < n, other=0.0)
    above = (places < n) & ~(tl.abs(x) <= tl.load(limit))
    order = tl.load(starts + tl.program_id(0)) + tl.cumsum(above.to(tl.int32)) - 1
    tl.store(indices + order, places, mask=above)
    tl.store(out + order, x, mask=above)


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`; one synchronisation, for the size."""
    exact = round_down(threshold, values.dtype)
    return above(values, torch.full((1,), exact, dtype=values.dtype, device=values.device))


def above(values: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values with ~(|value| <= limit), for a limit `[1]` on the device."""
    n, device = len(values), values.device
    kept = torch.zeros(triton.cdiv(n, BLOCK), dtype=torch.int64, device=device)
    if n:
        _above[(len(kept),)](values, limit, kept, n, BLOCK=BLOCK, **OPTIONS)
    ends = kept.cumsum(0)
    indices = torch.empty(int(ends[-1]) if n else 0, dtype=torch.int64, device=device)
    selected = torch.empty(len(indices), dtype=values.dtype, device=device)
    if len(indices):
        where = (values, limit, ends - kept, indices, selected)
        _write[(len(kept),)](*where, n, BLOCK=BLOCK, **OPTIONS)
    return indices, selected
