"""Distances between a distribution and a gradient's Summary: effect sizes, never a p-value.

With millions of elements every wrong distribution is rejected, however close it is; what matters
is how far off it is, above all in the tail, where thresholds lie.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradstats.families import Family
from gradstats.ratios import kept_count
from gradstats.summary.summary import Summary

Floats = NDArray[np.float64]
NODES, WEIGHTS = (each / 2 for each in np.polynomial.legendre.leggauss(2))
TAIL_POWERS = np.concatenate([np.arange(1.0, 65.0), 64 * 1.25 ** np.arange(1, 13)])
LEAST = math.log(5e-324)  # of ln P(|G| <= m), where the probability itself underflows
MOST = math.log(1.79e308)  # ln of the largest scale
# a bin is a point mass if the data are this many times denser than the distribution
STEEPEST = 1e3


def ks_distance(law: Family, summary: Summary) -> float:
    """Compute the Kolmogorov-Smirnov distance to the finite non-zero magnitudes, in [0, 1].

    The largest |P(|G| > m) - share of magnitudes above m|, over the edges of the bins.
    """
    magnitudes, above = _survival(summary)
    return float(np.abs(law.kept(magnitudes) - above).max())


def ad_distance(law: Family, summary: Summary) -> float:
    r"""Anderson-Darling distance of the magnitudes: the A² statistic over n.

    .. math:: A^2/n = \int_0^1 \frac{(c(u) - u)^2}{u(1 - u)}\,du, \qquad u = P(|G| > m)

    with c the share of magnitudes above m, linear in u inside a bin. It weighs both tails: with
    :math:`c = p + (q + 1)u` between two edges the integral is
    :math:`p^2 \ln\frac{u_0}{u_1} + (p+q)^2 \ln\frac{1-u_1}{1-u_0} - q^2 (u_0-u_1)`.

    Returns:
        The distance; inf where a magnitude lies beyond the end of the distribution's support.
    """
    magnitudes, above = _survival(summary)
    c = np.concatenate([[1.0], above, [0.0]])
    log_u = np.concatenate([[0.0], law.log_kept(magnitudes), [-np.inf]])
    u = np.exp(log_u)
    with np.errstate(divide="ignore"):
        log_rest = np.log(-np.expm1(log_u))
    log_rest[1:] = np.maximum(log_rest[1:], LEAST)  # every magnitude is above 0
    width, fall = u[:-1] - u[1:], c[:-1] - c[1:]
    point = fall >= STEEPEST * width
    slope = np.where(point, 0.0, fall / np.where(point, 1.0, width))
    p = np.where(point, (c[:-1] + c[1:]) / 2, c[:-1] - slope * u[:-1])
    upper = _times(p**2, log_u[:-1], log_u[1:])
    lower = _times((p + slope - 1) ** 2, log_rest[1:], log_rest[:-1])
    return float((upper + lower - (slope - 1) ** 2 * width).sum())


def _times(weight: Floats, high: Floats, low: Floats) -> Floats:
    """Weight · (high - low), 0 where the weight or the interval vanishes."""
    counts = (weight > 1e-300) & (high > low)
    gap = np.where(counts, high, 0.0) - np.where(counts, low, 0.0)
    return np.asarray(np.where(counts, weight, 0.0) * gap)


@np.errstate(over="ignore")
def wasserstein(law: Family, summary: Summary, order: int) -> float:
    r"""Wasserstein distance of order 1 or 2 of the magnitudes, over their mean.

    .. math:: W_r = \frac{1}{E|g|} \left( \int_0^1 |Q_n(p) - Q(p)|^r\,dp \right)^{1/r}

    Q and Q_n are the quantiles of the distribution and of the data, which are linear inside a bin.

    Returns:
        The distance, without unit; inf where the distribution has no moment of that order, or one
        that leaves float64.
    """
    if law.tail_index <= order:
        return math.inf
    magnitudes, above = _survival(summary)
    grid = np.concatenate([[1.0], above[1::2], 2.0**-TAIL_POWERS])
    log_p = np.log(np.unique(grid[grid > 0]))
    middle, half = (log_p[1:] + log_p[:-1]) / 2, np.diff(log_p)
    p = np.exp(middle[:, None] + half[:, None] * NODES)
    mean = summary.moments(logs=False).mean
    data = np.interp(p, above[::-1], magnitudes[::-1] / mean)
    unit = replace(law, scale=law.parameters["scale"] / mean)  # type: ignore[type-var]
    gaps = np.abs(data - unit.threshold(p)) ** order
    total = float((gaps * p * WEIGHTS * half[:, None]).sum())
    if law.tail_index < math.inf:  # of a power tail, what lies beyond the last share
        last = math.exp(log_p[0])
        total += float(unit.threshold(last)) ** order * last / (1 - order / law.tail_index)
    return float(total ** (1 / order))


def _survival(summary: Summary) -> tuple[Floats, Floats]:
    """Magnitudes at the edges of bins, and the share of magnitudes above them: `[2m]` each."""
    low, high = (np.minimum(edge, summary.max_abs) for edge in summary.edges)
    above = summary.counts[::-1].cumsum()[::-1] / summary.nonzero
    shares = np.column_stack([above, np.append(above[1:], 0.0)])
    return np.column_stack([low, high]).ravel(), shares.ravel()


def log_likelihood(law: Family, summary: Summary) -> float:
    """Mean ln f(g) of the finite non-zero elements, in nats per element, at the centres of bins.

    It is -inf where the distribution ends before the largest magnitude.
    """
    if float(law.threshold(0.0)) < summary.max_abs * (1 - 1e-12):
        return -math.inf
    magnitudes = np.minimum(summary.centres, summary.max_abs)
    return float(summary.counts @ law.logpdf(magnitudes)) / summary.nonzero


def rescaled(law: Family, summary: Summary) -> Family:
    """Refit the scale of a distribution to other data, and keep its shape.

    Between two steps the scale of gradients drifts; the shape is the part of a fit that carries
    over.
    """
    log_scale = law.log_scale(summary.logs, summary.counts / summary.nonzero)
    end = float(replace(law, scale=1.0).threshold(0.0))  # type: ignore[type-var]
    if end < math.inf:  # no element may lie beyond it
        log_scale = max(log_scale, math.log(summary.max_abs) - math.log(end))
    scale = math.exp(min(max(log_scale, LEAST), MOST))
    moved = replace(law, scale=scale)  # type: ignore[type-var]
    return max(moved, law, key=lambda each: log_likelihood(each, summary))


def tail_error(law: Family, summary: Summary, ratio: float) -> tuple[float, float]:
    """Return the threshold that should keep `ratio` of all elements, and the k̂/k it has.

    Zeros count as elements that no positive threshold keeps. The threshold is 0 where the target
    exceeds the share of non-zero elements.
    """
    k = kept_count(summary.n, ratio)
    threshold = float(law.threshold(min(ratio * summary.n / summary.nonzero, 1.0)))
    return threshold, summary.kept(threshold) / k


def quantile_pairs(law: Family, summary: Summary, points: int = 200) -> tuple[Floats, Floats]:
    """Return magnitudes of distribution and data at equal shares, for a q-q plot, `[points]`.

    The shares above run evenly in logarithm from 0.99 to that of the two largest elements.
    """
    shares = np.geomspace(0.99, min(2 / summary.nonzero, 0.98), points)
    return law.threshold(shares), np.array([summary.quantile(share) for share in shares])
