from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats import kernels
from gradstats.compressors.base import Compressor, Contract, State, kept_share
from gradstats.compressors.payloads import Sparse, sparse
from gradstats.compressors.rng import Rng
from gradstats.summary import Summary, kept_count, summarize

RESOLUTION = 0.2


@dataclass(frozen=True)
class RedSync(Compressor):
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
    contract = Contract("all_gather", delta=kept_share, wants_feedback=True)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Sparse, State]:
        """Bisect on the Summary, then select."""
        flat = grad.detach().reshape(-1).contiguous()
        return sparse(flat, kernels.select(flat, self._threshold(summarize(flat)))), state

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
