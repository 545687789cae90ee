from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy.special import ndtri
from torch import Tensor

from gradstats.compressors.contracts import SPARSIFIER
from gradstats.compressors.short_forms import Stateless
from gradstats.kernels.ranges import in_range_of_squares
from gradstats.payloads.sparse import Sparse
from gradstats.ratios import kept_count
from gradstats.rng import Rng
from gradstats.summary.summarizing import summarize
from gradstats.summary.summary import Summary

CHECKS = 3


@dataclass(frozen=True)
class GaussianK(Stateless):
    """A threshold from a normal fit to the magnitudes, adjusted when it misses k by a third.

    threshold = mean + |Φ⁻¹(ratio/2)| · sd of the magnitudes; three checks, the last one's
    selection is sent.

    Args:
        ratio: k/d, in (0, 1].

    References:
        Shi et al., "Understanding top-k sparsification in distributed deep learning", 2019;
        constants as in the code that SIDCo was compared with.
    """

    ratio: float
    name = "gaussiank"
    contract = replace(SPARSIFIER, host_reads=5)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Fit and adjust on the Summary, then select."""
        scaled, unit = in_range_of_squares(flat)
        return Sparse.above(flat, unit * self._threshold(summarize(scaled)))

    def _threshold(self, summary: Summary) -> float:
        k = kept_count(summary.n, self.ratio)
        n = max(summary.n - summary.nonfinite, 1)
        mean = summary.total_abs / n
        sd = math.sqrt(max(summary.total_sq - n * mean * mean, 0.0) / max(n - 1, 1))
        threshold = mean + abs(float(ndtri(self.ratio / 2))) * sd
        for _ in range(CHECKS - 1):
            kept = summary.kept(threshold)
            if 2 * k / 3 <= kept <= 4 * k / 3:
                break
            threshold *= 0.5 if kept < k else 1.5
        return threshold
