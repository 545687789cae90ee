"""How well a law describes a gradient, from its Summary; effect sizes, never a p-value.

With millions of elements every wrong law is rejected, however close it is; what matters is how far
off it is.
"""

from __future__ import annotations

import numpy as np

from gradstats.families import Family
from gradstats.summary import Summary, kept_count


def ks_distance(law: Family, summary: Summary) -> float:
    """Kolmogorov-Smirnov distance between the law and the finite non-zero magnitudes, in [0, 1].

    The largest |P(|G| > m) - share of magnitudes above m|, over the edges of the bins.
    """
    low, high = summary.edges
    above = summary.counts[::-1].cumsum()[::-1] / summary.nonzero
    beyond = np.append(above[1:], 0.0)
    at_low, at_high = np.abs(law.kept(low) - above), np.abs(law.kept(high) - beyond)
    return float(max(at_low.max(), at_high.max()))


def log_likelihood(law: Family, summary: Summary) -> float:
    """Mean ln f(g) of the finite non-zero elements, in nats an element, at the centres of bins."""
    return float(summary.counts @ law.logpdf(summary.centres)) / summary.nonzero


def tail_error(law: Family, summary: Summary, ratio: float) -> tuple[float, float]:
    """The threshold at which the law keeps `ratio` of all elements, and its k̂/k in fact.

    Zeros count as elements that no positive threshold keeps. The threshold is 0 where the target
    exceeds the share of non-zero elements.
    """
    share = min(ratio * summary.n / summary.nonzero, 1.0)
    threshold = float(law.threshold(share))
    return threshold, summary.kept(threshold) / kept_count(summary.n, ratio)
