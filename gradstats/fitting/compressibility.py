"""Compressibility: whether sorted magnitudes fall as a power of their rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.ratios import kept_count
from gradstats.summary.summary import Summary

Floats = NDArray[np.float64]
POINTS = 64  # ranks, evenly spaced in logarithm
WINDOW = (1e-4, 1e-1)  # of the non-zero elements
FEWEST = 100  # elements above the top of the window, and in it
FEWEST_DISTINCT = 10  # magnitudes (bins of the grid)
STRAIGHT = 0.25  # relative change of the exponent over the window that still is a power law
COMPRESSIBLE = 0.5


@dataclass(frozen=True)
class Decay:
    """How the sorted magnitudes fall: |g|₍ⱼ₎ ≈ c · j^(-p) over a window of ranks j.

    Attributes:
        exponent: p, the mean slope over the window.
        low, high: its 95 % bootstrap interval, as if elements were independent.
        exponent_top, exponent_bottom: local exponents at the largest and the smallest magnitudes.
        curvature_low, curvature_high: 95 % bootstrap interval of the quadratic term.
        first_rank, last_rank: the window.
    """

    exponent: float
    low: float
    high: float
    exponent_top: float
    exponent_bottom: float
    curvature_low: float
    curvature_high: float
    first_rank: int
    last_rank: int

    @property
    def power_law(self) -> bool:
        """Whether the line is straight, as far as the elements can tell."""
        change = abs(self.exponent_bottom - self.exponent_top) / max(abs(self.exponent), 1e-300)
        return change <= STRAIGHT or self.curvature_low <= 0 <= self.curvature_high

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        ranks = f"ranks {self.first_rank:,}–{self.last_rank:,}"
        if not self.power_law:
            ends = f"{self.exponent_top:.2f} to {self.exponent_bottom:.2f}"
            return f"no power law: over {ranks} the exponent goes from {ends}"
        fact = f"power law over {ranks} with exponent {self.exponent:.2f}"
        if self.exponent > COMPRESSIBLE:
            return f"compressible: {fact} > 1/2"
        return f"not compressible: {fact}, not above 1/2"


def decay(
    summary: Summary,
    *,
    window: tuple[float, float] = WINDOW,
    replicates: int = 200,
    seed: int = 0,
) -> Decay:
    r"""Fit :math:`\ln|g|_{(j)} = \ln c - p \ln(j - \tfrac12)` and test whether it is straight.

    The sorted magnitudes come from the Summary, uniform inside a bin, so that the time does not
    depend on their number. The interval resamples the counts of bins.

    Args:
        summary: of the gradient; its finite non-zero magnitudes are ranked, 1 the largest.
        window: first and last rank as shares of them; at least 100 elements lie above its top.
        replicates: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than a hundred elements in the window, fewer than ten distinct
            magnitudes, or a window outside (0, 1].

    References:
        Abdelmoniem et al., MLSys 2021 (compressibility: p > 1/2); Gabaix and Ibragimov, "Rank -
        1/2", 2011.
    """
    if not 0 < window[0] < window[1] <= 1:
        raise ValueError(f"window must rise inside (0, 1], got {window!r}")
    n = summary.nonzero
    first, last = max(FEWEST, round(window[0] * n)), round(window[1] * n)
    if summary.distinct < FEWEST_DISTINCT:
        fact = f"{summary.spread}, at least {FEWEST_DISTINCT} are needed"
        raise ValueError(f"cannot fit a decay: {fact}")
    if last < first + FEWEST:
        fact = f"ranks {first} to {last} of {n} magnitudes are fewer than {FEWEST}"
        raise ValueError(f"cannot fit a decay: {fact}")
    ranks = np.geomspace(first, last, POINTS)
    x = np.log(ranks - 0.5)
    middle, half = x.mean(), (x[-1] - x[0]) / 2
    rng = np.random.default_rng(seed)
    samples = rng.poisson(summary.counts, (replicates, len(summary.bins)))
    every = np.log([_sorted(summary, c, ranks) for c in (summary.counts, *samples)])
    slopes, curvatures = _quadratic(x - middle, every)
    low, high = np.quantile(slopes[1:], [0.025, 0.975])
    return Decay(
        exponent=float(slopes[0]),
        low=float(low),
        high=float(high),
        exponent_top=float(slopes[0] - 2 * half * curvatures[0]),
        exponent_bottom=float(slopes[0] + 2 * half * curvatures[0]),
        curvature_low=float(np.quantile(curvatures[1:], 0.025)),
        curvature_high=float(np.quantile(curvatures[1:], 0.975)),
        first_rank=first,
        last_rank=last,
    )


def _sorted(summary: Summary, counts: NDArray[np.int64], ranks: Floats) -> Floats:
    """The magnitudes of those ranks, the largest first, uniform inside a bin."""
    low, high = (edge[::-1] for edge in summary.edges)
    ends = np.cumsum(counts[::-1], dtype=np.float64)
    places = np.column_stack([ends - counts[::-1], ends]).ravel()
    return np.interp(ranks - 0.5, places, np.column_stack([high, low]).ravel())


def _quadratic(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """p of the straight line and c of y = a - p x - c x², of every row of y."""
    line = np.polynomial.polynomial.polyfit(x, y.T, 1)
    curve = np.polynomial.polynomial.polyfit(x, y.T, 2)
    return -line[1], -curve[2]


def best_k_error(summary: Summary, ratio: float) -> float:
    r"""Compute the relative error of keeping the k largest, :math:`\sigma_k / \lVert g \rVert_2`.

    :math:`\sigma_k^2 = \sum_{j > k} |g|_{(j)}^2` with k the `kept_count` of the ratio: no
    sparsifier that sends k elements of g does better.

    Args:
        summary: of the gradient, zeros included.
        ratio: k over the number of elements, in (0, 1].

    Returns:
        In [0, 1]; NaN where every element is zero or not finite.
    """
    if not summary.nonzero:
        return math.nan
    k = min(kept_count(summary.n, ratio), summary.nonzero)
    low, high = (edge[::-1] / summary.power for edge in summary.edges)
    counts = summary.counts[::-1]
    left = np.clip(np.cumsum(counts) - k, 0, counts)  # the smallest of each bin stay
    top = low + (high - low) * left / counts
    squares = (left * (low * low + low * top + top * top) / 3).sum()
    whole = (counts * (low * low + low * high + high * high) / 3).sum()
    return math.sqrt(float(squares / whole))


def decay_row(summary: Summary) -> dict[str, Any]:
    """Return the decay as a flat row with its verdict; NaN and a reason if it has no fit."""
    try:
        fit = decay(summary)
    except ValueError as error:
        return {"decay_exponent": math.nan, "power_law": None, "decay": str(error)}
    return {
        "decay_exponent": fit.exponent,
        "power_law": fit.power_law,
        "decay": fit.verdict,
    }
