from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats import kernels
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import check_ratio, kept_count
from gradstats.rng import Rng

MOST, LEAST = 1.3, 0.8  # of k
LOWERINGS = 10


@dataclass(frozen=True)
class DGC(Stateless):
    """The threshold that keeps `ratio` of a random sample; corrected when it keeps far from k.

    Below 0.8 k the threshold is lowered by a fifth, at most ten times; above 1.3 k the k largest
    of the selected are kept. This is the selection of Deep Gradient Compression; its momentum
    correction is a memory.

    Args:
        ratio: k/d, in (0, 1].
        sample: share of the elements that is sampled, at least 2/ratio elements.

    References:
        Lin et al., "Deep gradient compression", ICLR 2018.
    """

    ratio: float
    sample: float = 0.01
    name = "dgc"
    contract = replace(SPARSIFIER, random=True, host_reads=LOWERINGS + 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("sample", self.sample)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Sample, select, correct."""
        if not flat.numel():
            return Sparse.above(flat, 0.0)
        k = kept_count(flat.numel(), self.ratio)
        threshold = self._sampled_threshold(flat, needs_rng(self, rng))
        indices, values = kernels.compact(flat, threshold)
        for _ in range(LOWERINGS):
            if indices.numel() >= LEAST * k or threshold == 0:
                break
            threshold *= LEAST
            indices, values = kernels.compact(flat, threshold)
        if indices.numel() > MOST * k:
            chosen, values = kernels.largest(values, k)
            indices = indices[chosen]
        return Sparse(Dense(values), flat.numel(), indices)

    def _sampled_threshold(self, flat: Tensor, rng: Rng) -> float:
        n = flat.numel()
        size = min(n, max(math.ceil(self.sample * n), math.ceil(2 / self.ratio)))
        drawn = flat if size == n else flat[rng.own.integers(size, n, flat.device)]
        threshold = float(drawn.abs().topk(kept_count(size, self.ratio)).values[-1])
        # nothing exceeds one that is infinite or NaN
        return threshold if math.isfinite(threshold) else torch.finfo(flat.dtype).max
