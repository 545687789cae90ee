"""The kernels in triton."""

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
    rows,
    sparse,
    tally_16_bit,
)

BLOCK = 1 << 12  # elements that a program takes at a time
COUNTED = 1 << 10  # of them where it counts: what it keeps of each fits into registers
WINDOW = 1 << 12  # keys that each program counts apart: 16 octaves of float32, of either sign
ABOVE = 64  # bins of the window above the largest magnitude of a sample
SAMPLE = 1 << 12
PROGRAMS = 8  # per multiprocessor


@triton.jit
def _count(
    patterns,  # `[n]`
    window,  # `[2]` the cell that the window begins with, and the kind of bin that it counts
    near,  # `[programs, WINDOW]` counts of the keys inside the window
    counts,  # `[kinds, KEYS]` counts of the others
    specials,  # `[5]` NaN, inf, -inf, 0, -0
    sums,  # `[programs, 4]` of x, |x|, x², and the largest |x|
    n,
    SHIFT: tl.constexpr,
    KEYS: tl.constexpr,
    FLOAT: tl.constexpr,  # dtype of the values if they are to be summed, else None
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
):
    # Each program counts the keys inside the window in a row of its own, so that programs do not
    # wait for each other at the few keys that most elements have; zeros, which may be most of the
    # elements, in registers. (tl.histogram compares every element with every one of its bins.)
    low = tl.load(window)
    counted = tl.load(window + 1)
    row = near + tl.program_id(0) * WINDOW
    positive_zeros = tl.zeros([BLOCK], tl.int32)
    negative_zeros = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float64)
    total_abs = tl.zeros([BLOCK], tl.float64)
    total_sq = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], tl.float64)
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        places = tl.full([BLOCK], BLOCK, tl.int64) * block + tl.arange(0, BLOCK)
        valid = places < n
        bits = tl.load(patterns + places, mask=valid, other=0)
        key = (bits >> SHIFT).to(tl.int32) & (KEYS - 1)
        negative = key >= KEYS // 2
        zero = valid & ((bits << 1) == 0)
        positive_zeros += (zero & ~negative).to(tl.int32)
        negative_zeros += (zero & negative).to(tl.int32)
        place = (key & (KEYS // 2 - 1)) - low
        # 16-bit values have one kind of bin, the others points and the rest of their cells
        kind = ((bits & ((1 << SHIFT) - 1)) != 0).to(tl.int32)
        inside = (place >= 0) & (place < WINDOW // 2) & (kind == counted)
        slot = tl.where(inside, place + tl.where(negative, WINDOW // 2, 0), 0)
        tl.atomic_add(row + slot, 1, mask=valid & ~zero & inside, sem="relaxed")
        outside = valid & ~zero & ~inside
        tl.atomic_add(counts + kind * KEYS + key, 1, mask=outside, sem="relaxed")
        if FLOAT is not None:
            x = bits.to(FLOAT, bitcast=True).to(tl.float64)
            nan = valid & (x != x)
            infinite = valid & (tl.abs(x) == float("inf"))
            tl.atomic_add(specials + places * 0, 1, mask=nan, sem="relaxed")
            which = tl.where(negative, 2, 1)
            tl.atomic_add(specials + which, 1, mask=infinite, sem="relaxed")
            x = tl.where(valid & ~nan & ~infinite, x, 0.0)
            total += x
            total_abs += tl.abs(x)
            total_sq += x * x
            largest = tl.maximum(largest, tl.abs(x))
    tl.atomic_add(specials + 3, tl.sum(positive_zeros))
    tl.atomic_add(specials + 4, tl.sum(negative_zeros))
    own = sums + 4 * tl.program_id(0)
    tl.store(own, tl.sum(total))
    tl.store(own + 1, tl.sum(total_abs))
    tl.store(own + 2, tl.sum(total_sq))
    tl.store(own + 3, tl.max(largest))


OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
FLOATS = {torch.float32: tl.float32, torch.float64: tl.float64}


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid, wide = GRIDS[values.dtype], values.dtype in FLOATS
    keys = 2 * grid.cells
    size = grid.kinds * keys
    programs = min(triton.cdiv(len(values), COUNTED), most_programs(values.device))
    counts = torch.zeros(size + 5, dtype=torch.int64, device=values.device)
    sums = torch.zeros((programs, 4), dtype=torch.float64, device=values.device)
    if programs:
        patterns = values.view(INTEGERS[values.dtype.itemsize])
        window = _window(patterns, grid)
        near = torch.zeros((programs, WINDOW), dtype=torch.int32, device=values.device)
        sizes = {"SHIFT": grid.shift, "KEYS": keys, "BLOCK": COUNTED, "WINDOW": WINDOW}
        where = (patterns, window, near, counts, counts[size:], sums)
        _count[(programs,)](
            *where, len(values), **sizes, FLOAT=FLOATS.get(values.dtype), num_warps=4
        )
        slots = torch.arange(WINDOW, device=values.device)
        first = window[0] + window[1] * keys + (slots >= WINDOW // 2) * (keys // 2)
        counts[:size].index_add_(0, first + slots % (WINDOW // 2), near.sum(0))
    # one transfer, so that the host waits once
    both = torch.cat([counts, sums.view(torch.int64).reshape(-1)]).cpu().numpy()
    by_key, every = both[:size], both[size + 5 :].view("float64").reshape(-1, 4)
    nan, infinite, negative_infinite, zeros, negative_zeros = both[size : size + 5].tolist()
    if not wide:
        by_key[[0, keys // 2]] += [zeros, negative_zeros]
        return tally_16_bit(*sparse(by_key), values.dtype)
    total, total_abs, total_sq = (float(column.sum()) for column in every.T[:3])
    by_bin = by_key.reshape(grid.kinds, keys).T.ravel()
    return Tally(
        *rows(*sparse(by_bin), grid),
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


def _window(patterns: Tensor, grid: Grid) -> Tensor:
    """The window's first cell and its kind of bin, `[2]`, from a sample; no synchronisation.

    The kind is that of most elements: points where a gradient was once bfloat16.
    """
    sample = patterns[:: max(1, len(patterns) // SAMPLE)] & ((1 << (grid.bits - 1)) - 1)
    top = torch.where(sample < INFINITY[grid.dtype], sample, 0).max() >> grid.shift
    first = (top + ABOVE - WINDOW // 2).clamp(0, grid.cells - WINDOW // 2)
    points = (sample & ((1 << grid.shift) - 1)) == 0
    kind = 2 * (~points).sum() > (sample != 0).sum()
    return torch.stack([first, kind]).to(torch.int32)


def most_programs(device: torch.device) -> int:
    """As many programs as keep a device busy."""
    if device.type != "cuda":
        return PROGRAMS  # in the interpreter
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
