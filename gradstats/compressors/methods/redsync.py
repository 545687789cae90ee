from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gradstats import kernels
from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng
from gradstats.summary.summarizing import summarize
from gradstats.summary.summary import Summary

RESOLUTION = 0.2


@dataclass(frozen=True)
class RedSync(Stateless):
    """A threshold between mean and maximum magnitude, bisected until it keeps between k and 2k.

    threshold = mean + t (max - mean), t bisected in [0, 1] to a resolution of 0.2, so three
    evaluations at most; the last one is used. As in the code that SIDCo was compared with, counts
    in [k/2, k] raise the threshold.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Fang et al., "RedSync", JPDC 2019.
    """

    ratio: float
    name = "redsync"
    contract = replace(SPARSIFIER, host_reads=5)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Bisect on the Summary, then select."""
        return Sparse.above(flat, self._threshold(summarize(flat)))

    def _threshold(self, summary: Summary) -> float:
        k = kept_count(summary.n, self.ratio)
        mean = summary.total_abs / max(summary.n - summary.nonfinite, 1)
        threshold, low, high = mean, 0.0, 1.0
        while high - low > RESOLUTION:
            t = (low + high) / 2
            threshold = mean + t * (summary.max_abs - mean)
            kept = summary.kept(threshold)
            if k < kept < 2 * k:
                break
            low, high = (low, t) if kept < k / 2 else (t, high)
        return threshold


@dataclass(frozen=True)
class TrimmedRedSync(Stateless):
    """A threshold lowered from the maximum towards the mean until it keeps k, then their top k.

    threshold = mean + q (max - mean), q = 1 - eps, 1 - 2 eps, … 0.

    Args:
        ratio: k/d, in (0, 1].
        eps: by which q is lowered, in (0, 1).

    References:
        Fang et al., "RedSync", JPDC 2019.
    """

    ratio: float
    eps: float = 0.2
    name = "redsync-trimmed"
    contract = replace(SPARSIFIER, host_reads=6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie in (0, 1), got {self.eps!r}")

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Lower the threshold on the Summary, select, trim."""
        summary = summarize(flat)
        k = kept_count(summary.n, self.ratio)
        mean = summary.total_abs / max(summary.n - summary.nonfinite, 1)
        q = 1 - self.eps
        while q > 0 and summary.kept(mean + q * (summary.max_abs - mean)) < k:
            q -= self.eps
        threshold = mean + q * (summary.max_abs - mean) if q > 0 else 0.0
        indices, values = kernels.compact(flat, threshold)
        chosen, values = kernels.largest(values, k)
        return Sparse(Dense(values), flat.numel(), indices[chosen])
