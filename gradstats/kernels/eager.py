"""The kernels as plain torch: the readable definition, on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradstats.kernels.grid import GRIDS, Tally, _pattern, occupied, round_down, tally_16_bit

BLOCK = 1 << 20  # elements whose float64 copies are alive at one time


def count(values: Tensor) -> Tally:
    """See `gradstats.kernels.count`."""
    grid = GRIDS[values.dtype]
    narrow = values.dtype.itemsize == 2
    keys = 1 << (grid.bits - (0 if narrow else grid.shift))
    counts = torch.zeros(keys, dtype=torch.int64, device=values.device)
    for block in torch.split(values, BLOCK):
        patterns = _pattern(block).to(torch.int64) >> (0 if narrow else grid.shift)
        counts += torch.bincount(patterns & (keys - 1), minlength=keys)
    if narrow:
        return tally_16_bit(counts.cpu().numpy(), values.dtype)
    zero = values == 0
    finite_sums = [_finite_sums(block) for block in torch.split(values, BLOCK)]
    sums = torch.stack(finite_sums).cpu().numpy() if finite_sums else np.zeros((0, 4))
    negative_zeros = int((zero & torch.signbit(values)).sum())
    positive_zeros = int(zero.sum()) - negative_zeros
    counts[0] -= positive_zeros
    counts[grid.bins] -= negative_zeros
    return Tally(
        *occupied(counts.cpu().numpy(), grid),
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


def _finite_sums(block: Tensor) -> Tensor:
    wide = torch.where(block.isfinite(), block, 0).to(torch.float64)
    magnitudes = wide.abs()
    largest = magnitudes.max() if len(block) else wide.sum()
    return torch.stack([wide.sum(), magnitudes.sum(), (wide * wide).sum(), largest])


def select(values: Tensor, threshold: float) -> Tensor:
    """See `gradstats.kernels.select`."""
    return (~(values.abs() <= round_down(threshold, values.dtype))).nonzero().squeeze(1)
