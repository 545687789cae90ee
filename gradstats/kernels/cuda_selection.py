"""The k largest in triton. So far it has run in triton's interpreter only, never on a GPU.

A radix select: passes over some 11 bits of the magnitudes each narrow down the k-th largest on the
device, so that the host never waits; a last pass writes the k elements in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradstats.kernels.cuda import BLOCK, OPTIONS, _most_programs
from gradstats.kernels.grid import INFINITY, INTEGERS

DIGIT = 11  # bits that a pass counts, in shared memory


@triton.jit
def _magnitude(patterns, places, there, INFINITE: tl.constexpr, MASK: tl.constexpr):
    # finite < inf < NaN, and all NaN are equal
    bits = tl.load(patterns + places, mask=there, other=0).to(tl.int64) & MASK
    return tl.minimum(bits, INFINITE + 1)


@triton.jit
def _digits(
    patterns,  # `[n]`
    prefix,  # `[1]` the leading bits of the k-th magnitude
    counts,  # `[BINS]`
    n,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
    INFINITE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wanted = tl.load(prefix)
    near = tl.zeros([BINS], tl.int32)
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        places = tl.full([BLOCK], BLOCK, tl.int64) * block + tl.arange(0, BLOCK)
        there = places < n
        digits = _magnitude(patterns, places, there, INFINITE, MASK) >> SHIFT
        here = there & (digits // BINS == wanted)
        near += tl.histogram((digits % BINS).to(tl.int32), BINS, mask=here)
    tl.atomic_add(counts + tl.arange(0, BINS), near.to(tl.int64), mask=near > 0)


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
    there = places < n
    bits = _magnitude(patterns, places, there, INFINITE, MASK)
    limit = tl.load(kth)
    tl.store(above + tl.program_id(0), tl.sum((there & (bits > limit)).to(tl.int64)))
    tl.store(equal + tl.program_id(0), tl.sum((there & (bits == limit)).to(tl.int64)))


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
    there = places < n
    bits = _magnitude(patterns, places, there, INFINITE, MASK)
    limit, most = tl.load(kth), tl.load(missing)
    larger = (there & (bits > limit)).to(tl.int64)
    same = (there & (bits == limit)).to(tl.int64)
    larger_before = tl.load(above + tl.program_id(0)) + tl.cumsum(larger) - larger
    same_before = tl.load(equal + tl.program_id(0)) + tl.cumsum(same) - same
    chosen = (larger > 0) | ((same > 0) & (same_before < most))
    order = larger_before + tl.minimum(same_before, most)
    tl.store(indices + order, places, mask=chosen)
    tl.store(out + order, tl.load(values + places, mask=chosen), mask=chosen)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`; the host does not wait for the device."""
    n, device = len(values), values.device
    k = min(k, n)
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
        counts = torch.zeros(1 << width, dtype=torch.int64, device=device)
        grid = (min(blocks, _most_programs(device)),)
        _digits[grid](
            patterns, kth, counts, n, SHIFT=bits, BINS=1 << width, **constants, **OPTIONS
        )
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
