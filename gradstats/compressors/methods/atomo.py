from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.matrices import FACTOR_BITS, LAPACK, as_matrix, check_rank, factors
from gradstats.compressors.rounds import State
from gradstats.compressors.short_forms import needs_rng
from gradstats.kernels.ranges import in_unit, largest_magnitude, unit_of
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.low_rank import LowRank
from gradstats.rng import Rng


@dataclass(frozen=True)
class ATOMO(Compressor):
    r"""Singular triplets drawn with probabilities in proportion to their values: unbiased.

    .. math:: \hat M = \sum_i \frac{b_i}{p_i} \sigma_i u_i v_i^T, \quad
              b_i \sim \operatorname{Bernoulli}(p_i), \quad
              p_i = \min\Big(1, \frac{r' \sigma_i}{\sum_j \sigma_j}\Big)

    with r' such that the p add up to r: E‖M̂‖² = Σ σ²/p, so ω <= min(n1, n2)/r - 1. The draws are
    independent: resampling until exactly r are drawn would be biased.

    Args:
        rank: r, triplets sent on average.

    References:
        Wang et al., "ATOMO: Communication-efficient learning via atomic sparsification", NeurIPS
        2018.
    """

    rank: int = 2
    name = "atomo"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    @property
    def contract(self) -> Contract:
        """Unbiased."""
        return Contract(
            "all_gather",
            omega=Bound("min(n1, n2)/r - 1", self._omega),
            bits=FACTOR_BITS,
            unbiased=True,
            random=True,
            needs=("matrix",),
            host_reads=4,
        )

    def _omega(self, payload: LowRank | Dense) -> float:
        if isinstance(payload, Dense):
            return 0.0
        return min(len(payload.left), len(payload.right)) / self.rank - 1

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Decompose, then draw; values and 1/p go into the left factor."""
        stream = needs_rng(self, rng).own
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return Dense(self.flattened(grad).clone()), state
        peak = largest_magnitude(matrix)
        if not math.isfinite(peak):
            return LowRank(
                matrix.new_full((len(matrix), 1), torch.nan), matrix[:1].T.clone()
            ), state
        unit = unit_of(peak, LAPACK)
        matrix = in_unit(matrix, unit)
        u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
        chances = probabilities(sigma.double(), self.rank)
        drawn = (stream.uniform(len(sigma), grad.device) < chances).nonzero().squeeze(1)
        weights = (sigma / chances)[drawn].to(matrix.dtype)
        return factors(u[:, drawn] * weights, vt[drawn].T.contiguous(), unit), state


def probabilities(sigma: Tensor, rank: int) -> Tensor:
    """p_i = min(1, c σ_i) with c such that they add up to r, or to the number of values above 0.

    Example:
        >>> probabilities(torch.tensor([8.0, 1.0, 1.0]), 2).tolist()
        [1.0, 0.5, 0.5]
    """
    chances, settled = torch.zeros_like(sigma), torch.zeros_like(sigma[:1], dtype=torch.bool)
    for certain in range(min(rank, len(sigma)) + 1):  # the largest ones, whose p would exceed 1
        rest = sigma[certain:]
        total = rest.sum()
        shares = torch.where(total == 0, 0, rest * ((rank - certain) / total))
        trial = torch.cat([torch.ones_like(sigma[:certain]), shares])
        chances = torch.where(settled, chances, trial)
        settled = settled | (shares <= 1).all()
    return chances
