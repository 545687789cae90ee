"""The definition of selecting: plain torch on any device."""

from __future__ import annotations

from torch import Tensor

from gradstats.kernels.grid import round_down
from gradstats.kernels.ranges import left


def compact(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.compact`."""
    below = values.abs() <= round_down(threshold, values.dtype)
    indices = (~below).nonzero().squeeze(1)
    return indices, values[indices]


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `gradstats.kernels.largest`."""
    order = values.abs().sort(descending=True, stable=True).indices  # NaN comes first
    indices = order[:k].sort().values
    return indices, values[indices]


def subtract_at(residual: Tensor, indices: Tensor, sent: Tensor) -> None:
    """See `gradstats.kernels.subtract_at`."""
    residual[indices] = left(residual[indices], sent)
