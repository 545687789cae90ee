"""The kernels as plain torch: the readable definition, on any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.forms import on_host
from gradstats.kernels.grid import (
    GRIDS,
    Grid,
    Tally,
    rows,
    sparse,
    tally_16_bit,
)

BLOCK = 1 << 20  # elements whose float64 copies are alive at one time


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid = GRIDS[values.dtype]
    table = _table(values, grid)
    if grid.bits == 16:
        return tally_16_bit(*_rising(table.cpu().numpy()), values.dtype)
    sums = torch.stack([_finite_sums(block) for block in torch.split(values, BLOCK)])
    # one transfer, so that the host waits once
    numbers = [table.reshape(-1), _kinds(values), sums.view(torch.int64).reshape(-1)]
    read = torch.cat(numbers).cpu().numpy()
    of_table, kinds, of_sums = np.split(read, np.cumsum([len(each) for each in numbers[:2]]))
    positive_zeros, negative_zeros, nan, positive_inf, negative_inf = kinds.tolist()
    keys, counts = _rising(of_table.reshape(table.shape))
    counts[keys == 0] -= positive_zeros
    counts[keys == grid.bins] -= negative_zeros
    totals = of_sums.view(np.float64).reshape(-1, 4)
    return Tally(
        *rows(keys, counts, grid),
        positive_zeros=positive_zeros,
        negative_zeros=negative_zeros,
        nan=nan,
        positive_inf=positive_inf,
        negative_inf=negative_inf,
        total=float(totals[:, 0].sum()),
        total_abs=float(totals[:, 1].sum()),
        total_sq=float(totals[:, 2].sum()),
        max_abs=float(totals[:, 3].max(initial=0.0)),
    )


def _table(values: Tensor, grid: Grid) -> Tensor:
    """How many values have each sign and bin, `[2 bins]`; or those there are, and how many."""
    size = 2 * grid.bins
    keys = (grid.keys(block) for block in torch.split(values, BLOCK))
    if 8 * len(values) < size and on_host(values):  # sorting them is cheaper than a table
        return torch.stack(torch.unique(next(keys), return_counts=True))
    counts = torch.zeros(size, dtype=torch.int64, device=values.device)
    for block in keys:
        counts.index_add_(0, block, torch.ones_like(block))
    return counts


def _rising(table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The signs and bins that there are, rising, and how many values have them."""
    return (table[0], table[1]) if table.ndim == 2 else sparse(table)


def _kinds(values: Tensor) -> Tensor:
    """How many zeros of either sign, NaN and infinities of either sign there are, int64 `[5]`."""
    zero, negative = values == 0, torch.signbit(values)
    kinds = (zero & ~negative, zero & negative, values.isnan())
    return torch.stack([kind.sum() for kind in (*kinds, values.isposinf(), values.isneginf())])


def _finite_sums(block: Tensor) -> Tensor:
    wide = torch.where(block.isfinite(), block, 0).to(torch.float64)
    magnitudes = wide.abs()
    largest = magnitudes.max() if len(block) else wide.sum()
    return torch.stack([wide.sum(), magnitudes.sum(), (wide * wide).sum(), largest])
