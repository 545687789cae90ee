"""Inner products of a gradient and what became of it, as plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Products(NamedTuple):
    """Sums over a gradient g, its update ĝ, the compensated gradient v and the residual e.

    Attributes:
        grad: ‖g‖².
        update: ‖ĝ‖².
        both: ⟨g, ĝ⟩.
        lost: ‖g - ĝ‖².
        compensated: ‖v‖².
        missed: ‖v - ĝ‖².
        residual: ‖e‖².
    """

    grad: float
    update: float
    both: float
    lost: float
    compensated: float
    missed: float
    residual: float


def products(grad: Tensor, update: Tensor, compensated: Tensor, residual: Tensor) -> Products:
    """See `gradstats.kernels.products`."""
    g, s, v, e = (each.double() for each in (grad, update, compensated, residual))
    lost, missed = g - s, v - s
    pairs = ((g, g), (s, s), (g, s), (lost, lost), (v, v), (missed, missed), (e, e))
    sums = torch.stack([torch.dot(*pair) for pair in pairs])  # one transfer
    return Products(*sums.tolist())
