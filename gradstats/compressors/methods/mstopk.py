from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng


@dataclass(frozen=True)
class MSTopK(Stateless):
    """Top-k by counting: a threshold is bisected, and what is missing to k is a run of the band.

    Bisections of [mean, max] leave t₁, above which k₁ <= k lie, and t₂ < t₁, above which k or more
    do. All above t₁ are kept, and from a random index on k - k₁ consecutive ones of the band
    between, which need not be its largest: so only k₁/d is promised, and k₁ is not sent.

    Args:
        ratio: k/d, in (0, 1].
        bisections: how many.

    References:
        Shi et al., "Towards scalable distributed training of deep learning on public cloud
        clusters", MLSys 2021.
    """

    ratio: float
    bisections: int = 30
    name = "mstopk"
    contract = replace(SPARSIFIER, delta=None, random=True, host_reads=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("bisections", self.bisections, 1)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Bisect, then fill up from the band."""
        magnitudes, k = flat.abs().double(), kept_count(flat.numel(), self.ratio)
        finite = magnitudes[magnitudes.isfinite()]
        if not finite.numel():
            return Sparse.at(flat, magnitudes.isfinite().logical_not().nonzero().squeeze(1))
        low, high, mean = magnitudes.new_zeros(()), finite.max(), finite.mean()
        t = mean
        for _ in range(self.bisections):
            few = (~(magnitudes <= t)).sum() <= k
            low, high = torch.where(few, low, t), torch.where(few, t, high)
            t = (torch.maximum(low, mean) + high) / 2
        above = (~(magnitudes <= high)).nonzero().squeeze(1)
        band = ((magnitudes > low) & (magnitudes <= high)).nonzero().squeeze(1)
        missing = min(max(k - above.numel(), 0), band.numel())
        start = int(needs_rng(self, rng).own.integers(1, band.numel() - missing + 1)[0])
        return Sparse.at(flat, torch.cat([above, band[start : start + missing]]))
