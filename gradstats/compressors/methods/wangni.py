from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.contracts import SPARSE_BITS, Bound, Contract
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels.ranges import from_unit, in_range, saturated
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class Wangni(Stateless):
    r"""Each element with a probability in proportion to its magnitude, divided by it: unbiased.

    :math:`p_i = \min(1, \lambda |x_i|)`.

    λ is such that k elements are expected. No other probabilities of that sum have less variance:
    :math:`\sum x_i^2/p_i \le d/k \|x\|^2`, that of equal ones.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Wangni et al., "Gradient sparsification for communication-efficient distributed
        optimization", NeurIPS 2018.
    """

    ratio: float
    name = "wangni"

    @property
    def contract(self) -> Contract:
        """Unbiased, at most with the variance of Random-k."""
        omega = Bound("d/k - 1", lambda p: p.numel / kept_count(p.numel, self.ratio) - 1)
        return Contract(
            "all_gather",
            omega=omega,
            bits=SPARSE_BITS,
            unbiased=True,
            random=True,
            host_reads=3,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Draw each element."""
        scaled, unit = in_range(flat.double())
        share = _probabilities(scaled.abs(), kept_count(flat.numel(), self.ratio))
        drawn = needs_rng(self, rng).own.uniform(flat.numel(), flat.device) < share
        indices = drawn.nonzero().squeeze(1)
        values = saturated(from_unit(scaled[indices] / share[indices], unit), flat.dtype)
        return Sparse(Dense(values), flat.numel(), indices)


def _probabilities(magnitudes: Tensor, k: int) -> Tensor:
    """min(1, λ|x|) of sum k; 1 where x is not finite."""
    if not len(magnitudes):
        return magnitudes
    finite = torch.where(magnitudes.isfinite(), magnitudes, 0)
    falling = finite.sort(descending=True).values
    rest = falling.sum() - falling.cumsum(0) + falling  # of an element and all below it
    saturated = torch.arange(len(falling), device=falling.device)
    unit = (k - saturated) / rest  # λ, if so many elements have p = 1
    fits = (unit * falling <= 1) & (rest > 0) & (unit > 0)
    first = torch.where(fits, saturated, len(falling)).amin(0, keepdim=True)
    share = (unit.gather(0, first.clamp(max=len(unit) - 1)) * finite).clamp(max=1)
    share = torch.where(fits.any(), share, (magnitudes != 0).double())
    return torch.where(magnitudes.isfinite(), share, 1.0)
