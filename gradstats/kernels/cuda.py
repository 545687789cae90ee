"""The kernels in triton. So far they have run in triton's interpreter only, never on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradstats.kernels.grid import (
    GRIDS,
    INFINITY,
    INTEGERS,
    Grid,
    Tally,
    round_down,
    rows,
    sparse,
    tally_16_bit,
)

BLOCK = 1 << 13  # elements that a program takes at a time
WINDOW = 1 << 12  # keys counted in shared memory: 16 octaves of float32, of either sign
ABOVE = 64  # bins of the window above the largest magnitude of a sample
SAMPLE = 1 << 12
PROGRAMS = 4  # a multiprocessor


@triton.jit
def _count(
    patterns,  # `[n]`
    first,  # `[1]` magnitude bin that the window begins with
    counts,  # `[KEYS]`
    specials,  # `[5]` NaN, inf, -inf, 0, -0
    sums,  # `[programs, 4]` of x, |x|, x², and the largest |x|
    n,
    SHIFT: tl.constexpr,
    KEYS: tl.constexpr,
    FLOAT: tl.constexpr,  # dtype of the values if they are to be summed, else None
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
):
    # Keys inside the window are counted in shared memory, the few others by atomics; zeros, which
    # may be most of the elements, in registers.
    low = tl.load(first)
    near = tl.zeros([WINDOW], tl.int32)
    positive_zeros = 0
    negative_zeros = 0
    total = tl.zeros([1], tl.float64)
    total_abs = tl.zeros([1], tl.float64)
    total_sq = tl.zeros([1], tl.float64)
    largest = tl.zeros([1], tl.float64)
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        places = tl.full([BLOCK], BLOCK, tl.int64) * block + tl.arange(0, BLOCK)
        there = places < n
        bits = tl.load(patterns + places, mask=there, other=0)
        key = (bits >> SHIFT).to(tl.int32) & (KEYS - 1)
        negative = key >= KEYS // 2
        zero = there & ((bits << 1) == 0)
        positive_zeros += tl.sum((zero & ~negative).to(tl.int32))
        negative_zeros += tl.sum((zero & negative).to(tl.int32))
        place = (key & (KEYS // 2 - 1)) - low
        inside = (place >= 0) & (place < WINDOW // 2)
        slot = tl.where(inside, place + tl.where(negative, WINDOW // 2, 0), 0)
        near += tl.histogram(slot, WINDOW, mask=there & ~zero & inside)
        tl.atomic_add(counts + key, 1, mask=there & ~zero & ~inside)
        if FLOAT is not None:
            x = bits.to(FLOAT, bitcast=True).to(tl.float64)
            nan = there & (x != x)
            infinite = there & (tl.abs(x) == float("inf"))
            tl.atomic_add(specials + places * 0, 1, mask=nan)
            tl.atomic_add(specials + tl.where(negative, 2, 1), 1, mask=infinite)
            x = tl.where(there & ~nan & ~infinite, x, 0.0)
            total += tl.sum(x)
            total_abs += tl.sum(tl.abs(x))
            total_sq += tl.sum(x * x)
            largest = tl.maximum(largest, tl.max(tl.abs(x)))
    slots = tl.arange(0, WINDOW)
    bins = low + slots % (WINDOW // 2)
    keys = tl.where(slots >= WINDOW // 2, bins + KEYS // 2, bins)
    tl.atomic_add(counts + keys, near, mask=near > 0)
    tl.atomic_add(specials + 3, positive_zeros)
    tl.atomic_add(specials + 4, negative_zeros)
    row = sums + 4 * tl.program_id(0) + tl.arange(0, 1)
    tl.store(row, total)
    tl.store(row + 1, total_abs)
    tl.store(row + 2, total_sq)
    tl.store(row + 3, largest)


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


OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
FLOATS = {torch.float32: tl.float32, torch.float64: tl.float64}


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid, wide = GRIDS[values.dtype], values.dtype in FLOATS
    shift = grid.shift if wide else 0
    keys = 1 << (grid.bits - shift)
    programs = min(triton.cdiv(len(values), BLOCK), _most_programs(values.device))
    counts = torch.zeros(keys + 5, dtype=torch.int64, device=values.device)
    sums = torch.zeros((programs, 4), dtype=torch.float64, device=values.device)
    if programs:
        patterns = values.view(INTEGERS[values.dtype.itemsize])
        first = _window(patterns, grid, shift, keys)
        sizes = {"SHIFT": shift, "KEYS": keys, "BLOCK": BLOCK, "WINDOW": WINDOW}
        where = (patterns, first, counts, counts[keys:], sums)
        _count[(programs,)](
            *where, len(values), **sizes, FLOAT=FLOATS.get(values.dtype), **OPTIONS
        )
    # one transfer, so that the host waits once
    both = torch.cat([counts, sums.view(torch.int64).reshape(-1)]).cpu().numpy()
    found, every = both[: keys + 5], both[keys + 5 :].view("float64").reshape(-1, 4)
    nan, infinite, negative_infinite, zeros, negative_zeros = found[keys:].tolist()
    if not wide:
        found[[0, keys // 2]] += [zeros, negative_zeros]
        return tally_16_bit(*sparse(found[:keys]), values.dtype)
    total, total_abs, total_sq = (float(column.sum()) for column in every.T[:3])
    return Tally(
        *rows(*sparse(found[:keys]), grid),
        positive_zeros=zeros,
        negative_zeros=negative_zeros,
        nan=nan,
        positive_inf=infinite,
        negative_inf=negative_infinite,
        total=total,
        total_abs=total_abs,
        total_sq=total_sq,
        max_abs=float(every[:, 3].max(initial=0.0)),
    )


def _window(patterns: Tensor, grid: Grid, shift: int, keys: int) -> Tensor:
    """First magnitude bin of the window, `[1]`, from a sample; no synchronisation."""
    sample = patterns[:: max(1, len(patterns) // SAMPLE)] & ((1 << (grid.bits - 1)) - 1)
    top = torch.where(sample < INFINITY[grid.dtype], sample, 0).max() >> shift
    first = (top + ABOVE - WINDOW // 2).clamp(0, (keys - WINDOW) // 2)
    return first.to(torch.int32).reshape(1)


def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS  # in the interpreter
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`; one synchronisation, for the size."""
    n, device = len(values), values.device
    exact = round_down(threshold, values.dtype)
    limit = torch.tensor([exact], dtype=values.dtype, device=device)
    kept = torch.zeros(triton.cdiv(n, BLOCK), dtype=torch.int64, device=device)
    if n:
        _above[(len(kept),)](values, limit, kept, n, BLOCK=BLOCK, **OPTIONS)
    ends = kept.cumsum(0)
    indices = torch.empty(int(ends[-1]) if n else 0, dtype=torch.int64, device=device)
    found = torch.empty(len(indices), dtype=values.dtype, device=device)
    if len(indices):
        where = (values, limit, ends - kept, indices, found)
        _write[(len(kept),)](*where, n, BLOCK=BLOCK, **OPTIONS)
    return indices, found
