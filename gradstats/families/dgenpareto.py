from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.likelihood import highest
from gradstats.families.search import falling_root, softplus
from gradstats.families.symmetric import symmetric_law
from gradstats.summary import Moments, Summary

LOWEST_SHAPE = -0.5  # below it maximum likelihood is not regular
HIGHEST_SHAPE = 5.0
BOUNDED = (
    -36.0,
    -0.5,
    24,
)  # ln(1 - max|g|/end) tried for a bounded support; e^-36: float64's limit
LAPLACE = math.log(1e-9)  # ln|θ| max|g| below which the fit equals Laplace in float64
HALF_BIN = 2.0**-8  # of ln|g|


@dataclass(frozen=True)
class DGenPareto(Family):
    r"""The double generalized Pareto distribution: heavy-tailed for a > 0, Laplace at a = 0.

    For a < 0 its support ends at b/|a|.

    .. math:: f(g) = \frac{1}{2b} (1 + a|g|/b)^{-(1/a + 1)}, \qquad P(|G| > m) = (1 + am/b)^{-1/a}

    By `moments`, with mean μ and variance s² of the magnitudes (finite only for a < 1/2):

    .. math:: a = \tfrac12 (1 - \mu^2/s^2), \qquad b = \tfrac12 \mu (\mu^2/s^2 + 1).

    The distribution of excesses over a high threshold (Pickands-Balkema-de Haan), hence every
    stage of SIDCo-P and the later stages of SIDCo-GP. `mle` maximises the binned likelihood over
    shapes in [-1/2, 5]; for a given θ = a/b the best shape is the mean of ln(1 + θ|g|)
    (Grimshaw), so that one parameter remains to be searched for.

    Args:
        shape: a, positive for heavy tails (scipy's sign).
        scale: b > 0, in the unit of the gradient.

    References:
        Hosking and Wallis, "Parameter and quantile estimation for the generalized Pareto
        distribution", 1987; Grimshaw, "Computing maximum likelihood estimates for the generalized
        Pareto distribution", 1993; Abdelmoniem et al., MLSys 2021.

    Example:
        >>> law = DGenPareto(shape=0.2, scale=1.0)
        >>> round(float(law.kept(law.threshold(0.001))), 12)
        0.001
    """

    shape: float
    scale: float
    name = "dgenpareto"
    special_cases = ("laplace",)
    bounds = {"shape": (LOWEST_SHAPE, HIGHEST_SHAPE)}
    positive = ("scale",)

    @property
    def tail_index(self) -> float:
        """1/a: the tail falls as a power -1/a of the magnitude; inf for a <= 0."""
        return 1 / self.shape if self.shape > 0 else math.inf

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The closed form above."""
        require(moments.n >= 2, cls, f"needs 2 magnitudes for a variance, got {moments.n:g}")
        require(moments.distinct, cls, f"all {moments.n:g} magnitudes share one bin")
        require(moments.var > 0, cls, f"the variance must be positive, got {moments.var!r}")
        peak = moments.mean**2 / moments.var
        return cls((1 - peak) / 2, moments.mean * (peak + 1) / 2)

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The highest profile likelihood over θ = a/b, at which a is the mean of ln(1 + θ|g|)."""
        weight, top = summary.counts / summary.nonzero, math.log(summary.max_abs)
        logs = summary.logs - top
        x = np.exp(logs)

        def shape_and_scale(point: float) -> tuple[float, float, float]:
            """Shape, ln scale and mean of ln(1 + θ|g|) over the shape, at θ max|g| = e^point - 1.

            θ is above -1/max|g|, where the support ends at the data.
            """
            log_theta = point + math.log1p(-math.exp(-point)) if point > 1 else _log_expm1(point)
            if log_theta < LAPLACE:
                return math.expm1(point), math.log(float(weight @ x)), 1.0
            terms = softplus(log_theta + logs) if point > 0 else np.log1p(math.expm1(point) * x)
            growth = float(weight @ terms)
            shape = min(max(growth, LOWEST_SHAPE), HIGHEST_SHAPE)
            return shape, math.log(abs(shape)) - log_theta, growth / shape

        def profile(point: float) -> float:
            shape, log_scale, share = shape_and_scale(point)
            return -log_scale - (1 + shape) * share

        # all ln(1 + θ|g|) are above the highest shape at the last, where the likelihood falls
        rise = HIGHEST_SHAPE + 1 - float(logs[0])
        starts = np.append(np.linspace(*BOUNDED), np.linspace(0.0, rise, math.ceil(2 * rise)))
        shape, log_scale, _ = shape_and_scale(highest(cls, profile, starts))
        return cls(shape, math.exp(log_scale + top))

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """The root of mean((1 + a)|g|/(b + a|g|)) = 1; for a <= -1 half a bin beyond the data.

        There the likelihood rises without limit as the support's end falls to the data.
        """
        a, top = self.shape, float(logs.max())
        end = top + math.log(-a) if a < 0 else -math.inf
        if a <= -1:
            return end + HALF_BIN

        @np.errstate(over="ignore", divide="ignore")
        def gap(log: float) -> tuple[float, float]:
            ratio = np.exp(np.minimum(log - logs, 700.0))
            share = np.minimum((1 + a) / (ratio + a), 1e300)
            slope = -float(weights @ np.minimum(share * (ratio / (ratio + a)), 1e300))
            return float(weights @ share) - 1, slope

        low = max(float(logs.min()), end)
        return falling_root(gap, low, top, max(float(weights @ logs), (low + top) / 2))

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """-(1 + a) z l(az) - ln 2b with z = |x|/b, l(y) = ln(1+y)/y; -inf off the support."""
        decay = _log1p_ratio(self.shape, np.abs(x), self.scale)
        inside = ~np.isinf(decay)
        log = -(1 + self.shape) * np.where(inside, decay, 0.0) - math.log(2) - math.log(self.scale)
        return np.where(inside, log, -np.inf)

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """-z l(az), which is -ln(1 + az)/a."""
        return -_log1p_ratio(self.shape, magnitudes(magnitude), self.scale)

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """The inverse, b (ratio^-a - 1)/a, by a Box-Cox transform that is smooth at a = 0."""
        return np.asarray(-self.scale * special.boxcox(shares(ratio), -self.shape))

    def scipy(self) -> Any:
        """`dgenpareto` as a scipy distribution (scipy has only the one-sided `genpareto`)."""
        return _scipy_law()(self.shape, scale=self.scale)


def _log_expm1(point: float) -> float:
    """Ln|e^point - 1|; -inf at 0."""
    value = abs(math.expm1(point))
    return math.log(value) if value else -math.inf


def _log1p_ratio(a: float, magnitude: Floats, scale: float) -> Floats:
    """ln(1 + az)/a with z = magnitude/scale; z at a = 0; inf beyond the support."""
    z = np.asarray(magnitude, np.float64) / scale
    if abs(a) < 1e-300:
        return z
    y = a * z
    if a > 0 and np.isinf(y).any():  # the logarithm of what overflows does not
        with np.errstate(divide="ignore"):
            return softplus(np.log(magnitude) - math.log(scale) + math.log(a)) / a
    beyond = y <= -1
    ratio = np.log1p(np.where(beyond, 0.0, y)) / a
    return np.where(beyond, np.inf, ratio)


@cache
def _scipy_law() -> Any:
    from scipy import stats

    return symmetric_law(stats.genpareto, "dgenpareto")
