"""The kernels as plain torch: the readable definition, on any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    if grid.bits == 16:
        return tally_16_bit(*_counted(values, grid), values.dtype)
    keys, counts = _counted(values, grid)
    zero = values == 0
    finite_sums = [_finite_sums(block) for block in torch.split(values, BLOCK)]
    sums = torch.stack(finite_sums).cpu().numpy() if finite_sums else np.zeros((0, 4))
    negative_zeros = int((zero & torch.signbit(values)).sum())
    positive_zeros = int(zero.sum()) - negative_zeros
    counts[keys == 0] -= positive_zeros
    counts[keys == grid.bins] -= negative_zeros
    return Tally(
        *rows(keys, counts, grid),
        positive_zeros=positive_zeros,
        negative_zeros=negative_zeros,
        nan=int(values.isnan().sum()),
        positive_inf=int(values.isposinf().sum()),
        negative_inf=int(values.isneginf().sum()),
        total=float(sums[:, 0].sum()),
        total_abs=float(sums[:, 1].sum()),
        total_sq=float(sums[:, 2].sum()),
        max_abs=float(sums[:, 3].max(initial=0.0)),
    )


def _counted(values: Tensor, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The signs and bins that there are, rising, and how many values have them."""
    size = 2 * grid.bins
    keys = (grid.keys(block) for block in torch.split(values, BLOCK))
    if 8 * len(values) < size:  # sorting them is cheaper than a table
        unique = torch.unique(next(keys), return_counts=True)
        return unique[0].cpu().numpy(), unique[1].cpu().numpy()
    counts = torch.zeros(size, dtype=torch.int64, device=values.device)
    for block in keys:
        counts += torch.bincount(block, minlength=size)
    return sparse(counts.cpu().numpy())


def _finite_sums(block: Tensor) -> Tensor:
    wide = torch.where(block.isfinite(), block, 0).to(torch.float64)
    magnitudes = wide.abs()
    largest = magnitudes.max() if len(block) else wide.sum()
    return torch.stack([wide.sum(), magnitudes.sum(), (wide * wide).sum(), largest])
