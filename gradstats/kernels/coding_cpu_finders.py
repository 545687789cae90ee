"""How numba finds the symbols of an alphabet: by arithmetic where its levels allow, or a table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.coding_cpu_finding import EVEN, FEW, FLOATS, TABLE, Finder
from gradstats.kernels.coding_eager import boundaries, inverse_gaps

HEADS = 1 << 16
MOST_FEW = 16  # boundaries that are compared one by one
MOST_EVEN = 127  # steps on each side that float32 tells apart often enough
NONE = np.zeros(0, np.uint32)


def finder(levels: Tensor, rounding: str, key: tuple[int, int]) -> Finder:
    """The way to find symbols, with the key of its random numbers."""
    return _finder(tuple(levels.tolist()), rounding)._replace(key=np.array(key, np.uint32))


@lru_cache(maxsize=64)
def _finder(levels: tuple[float, ...], rounding: str) -> Finder:
    tensor, stochastic = torch.tensor(levels), rounding == "stochastic"
    if stochastic:  # level j + 1 is reached from the float below it on
        inner = tensor[1:-1]
        bounds = torch.nextafter(inner, torch.full_like(inner, -torch.inf)).numpy()
    else:
        bounds = boundaries(tensor, rounding).numpy()
    array = tensor.numpy()
    format, steps = _small_float(array), _even_steps(array)
    if rounding == "nearest-even" and format.size:
        kind = FLOATS
    elif not stochastic and len(bounds) <= MOST_FEW:
        kind = FEW
    else:
        kind = EVEN if rounding != "nearest-even" and 0 < steps <= MOST_EVEN else TABLE
    middle = len(levels) // 2
    first = _first(bounds, middle) if kind == TABLE else NONE.view(np.int32)
    if kind == FEW:
        filled = np.full(-(-len(bounds) // 4) * 4, np.inf, np.float32)
        filled[: len(bounds)] = bounds
        bounds = filled
    wide, gaps = tensor.double().numpy(), inverse_gaps(tensor).numpy()
    return Finder(
        kind, stochastic, middle, first, bounds, wide, gaps, np.float32(steps), format, NONE
    )


def _first(bounds: NDArray[np.float32], middle: int) -> NDArray[np.int32]:
    """By the leading half of a pattern: the boundaries below, or ~ those below the first."""
    heads = np.arange(HEADS, dtype=np.uint32) << 16
    ends = np.stack([heads.view(np.float32), (heads | 0xFFFF).view(np.float32)])
    low, high = (
        np.asarray(np.searchsorted(bounds, end, side="left"))
        for end in (np.fmin(*ends), np.fmax(*ends))
    )
    first = np.where(low == high, low, ~low).astype(np.int32)
    first[np.isnan(ends).any(axis=0)] = middle
    first[[0x7F80, 0xFF80]] = ~0  # infinity and NaN
    return first


def _even_steps(levels: NDArray[np.float32]) -> int:
    """s of 2s + 1 levels at even distances from -1 to 1; 0 of others."""
    s = len(levels) // 2
    even = (np.arange(-s, len(levels) - s) / max(s, 1)).astype(np.float32)
    return s if np.array_equal(levels, even) else 0


def _small_float(levels: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The format of levels that are all numbers of a small float, see `Finder`; else empty."""
    top = len(levels) // 2
    for mantissa in (1, 2, 3):
        least = float(levels[-top])  # which is subnormal
        codes = np.arange(1, top + 1)
        power, fraction = np.maximum(codes >> mantissa, 1), codes & ((1 << mantissa) - 1)
        whole = fraction + ((codes >> mantissa) > 0) * (1 << mantissa)
        positive = least * whole * 2.0 ** (power - 1)
        if not np.array_equal(levels, np.concatenate([-positive[::-1], [0], positive])):
            continue
        shift = 23 - mantissa
        edge = np.float32(least * (1 << mantissa)).view(np.uint32)  # the first normal number
        base = (int(edge) >> shift) - (1 << mantissa)
        magic = np.float32(least * 2.0**23).view(np.uint32)
        return np.array([shift, (1 << (shift - 1)) - 1, base, magic, edge, top], np.uint32)
    return NONE
