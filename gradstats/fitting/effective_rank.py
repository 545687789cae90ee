"""Effective ranks: the number of directions of a matrix-shaped gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ENERGIES = (0.9, 0.99)


@dataclass(frozen=True)
class EffectiveRank:
    """Numbers of directions, all between 1 and `full`, from the singular values σ.

    Attributes:
        stable_rank: ‖G‖²_F / ‖G‖²₂ = Σσ² / max σ².
        entropy_rank: exp(H(σ / Σσ)), H the entropy in nats.
        r90, r99: the least number of directions that hold 90 and 99 % of Σσ².
        full: min(rows, columns).
    """

    stable_rank: float
    entropy_rank: float
    r90: int
    r99: int
    full: int


def effective_rank(grad: Tensor) -> EffectiveRank:
    """Effective ranks of a matrix, or of a tensor taken as (first dimension, all others).

    The singular values are square roots of the eigenvalues of the Gram matrix of the smaller side,
    in float64: those below 1e-8 of the largest are noise, which none of these ranks sees.

    Args:
        grad: at least two dimensions, each side longer than 1; a convolution of shape
            (out, in, height, width) is a matrix (out, in · height · width).

    Raises:
        ValueError: not a matrix, or its ranks are undetermined: all zero, or NaN or inf.

    References:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007; Rudelson and Vershynin, "Sampling
        from large matrices", 2007 (stable rank).

    Example:
        >>> effective_rank(torch.eye(4))
        EffectiveRank(stable_rank=4.0, entropy_rank=4.0, r90=4, r99=4, full=4)
    """
    if grad.dim() < 2 or min(grad.shape[0], grad[0].numel()) < 2:
        raise ValueError(f"grad must be a matrix with sides above 1, got {tuple(grad.shape)}")
    matrix = grad.detach().reshape(grad.shape[0], -1).to(torch.float64)
    largest = float(matrix.abs().max())
    if not math.isfinite(largest) or largest == 0:
        fact = "every element is zero" if largest == 0 else "an element is NaN or inf"
        raise ValueError(f"cannot compute the rank of a {tuple(grad.shape)} gradient: {fact}")
    matrix = (matrix if len(matrix) <= matrix.shape[1] else matrix.T) / largest
    energies = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp(min=0).cpu()
    sigma = energies.sqrt()
    share = sigma / sigma.sum()
    held = energies.cumsum(0) / energies.sum()
    r90, r99 = (int((held < energy).sum()) + 1 for energy in ENERGIES)
    return EffectiveRank(
        stable_rank=float(energies.sum() / energies[0]),
        entropy_rank=math.exp(float(torch.special.entr(share).sum())),
        r90=min(r90, len(energies)),
        r99=min(r99, len(energies)),
        full=len(energies),
    )
