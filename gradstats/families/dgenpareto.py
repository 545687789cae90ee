from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from gradstats.families.base import Family, Floats, require
from gradstats.families.likelihood import highest
from gradstats.families.symmetric import symmetric_law
from gradstats.summary import Moments, Summary

LOWEST_SHAPE = -0.5  # below it maximum likelihood is not regular
HIGHEST_SHAPE = 5.0


@dataclass(frozen=True)
class DGenPareto(Family):
    r"""The double generalized Pareto law: heavy-tailed for a > 0, Laplace at a = 0.

    For a < 0 its support ends at b/|a|.

    .. math:: f(g) = \frac{1}{2b} (1 + a|g|/b)^{-(1/a + 1)}, \qquad P(|G| > m) = (1 + am/b)^{-1/a}

    By `moments`, with mean μ and variance s² of the magnitudes (finite only for a < 1/2):

    .. math:: a = \tfrac12 (1 - \mu^2/s^2), \qquad b = \tfrac12 \mu (\mu^2/s^2 + 1).

    The law of excesses over a high threshold (Pickands-Balkema-de Haan), hence every stage of
    SIDCo-P and the later stages of SIDCo-GP. `mle` maximises the binned likelihood over shapes in
    [-1/2, 5]; for a given θ = a/b the best shape is the mean of ln(1 + θ|g|) (Grimshaw), so that
    one parameter remains to be searched for.

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
    bounds = {"shape": (LOWEST_SHAPE, HIGHEST_SHAPE)}

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
        weight, unit = summary.counts / summary.nonzero, summary.quantile(0.5)
        x = summary.centres / unit
        top = max(float(x[-1]), summary.max_abs / unit)

        def shape_and_scale(point: float) -> tuple[float, float, float]:
            theta = math.expm1(point) / top  # above -1/top, where the support ends at the data
            if abs(theta) * top < 1e-9:  # Laplace
                return theta, float(weight @ x), 1.0
            growth = float(weight @ np.log1p(theta * x))
            shape = min(max(growth, LOWEST_SHAPE), HIGHEST_SHAPE)
            return shape, shape / theta, growth / shape

        def profile(point: float) -> float:
            shape, scale, share = shape_and_scale(point)
            return -math.log(scale) - (1 + shape) * share

        starts = np.append(np.linspace(-12.0, -0.5, 12), np.linspace(0.0, math.log(1e4 * top), 36))
        shape, scale, _ = shape_and_scale(highest(cls, profile, starts))
        return cls(shape, unit * scale)

    def logpdf(self, x: ArrayLike) -> Floats:
        """-(1 + a) z l(az) - ln 2b with z = |x|/b, l(y) = ln(1+y)/y; -inf off the support."""
        decay = _log1p_ratio(self.shape, np.abs(x) / self.scale)
        inside = np.isfinite(decay)
        log = -(1 + self.shape) * np.where(inside, decay, 0.0) - math.log(2 * self.scale)
        return np.where(inside, log, -np.inf)

    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """-z l(az), which is -ln(1 + az)/a."""
        return -_log1p_ratio(self.shape, np.asarray(magnitude, np.float64) / self.scale)

    def threshold(self, ratio: ArrayLike) -> Floats:
        """The inverse, b (ratio^-a - 1)/a, by a Box-Cox transform that is smooth at a = 0."""
        return np.asarray(-self.scale * special.boxcox(ratio, -self.shape))

    def scipy(self) -> Any:
        """`dgenpareto` as a scipy law (scipy has only the one-sided `genpareto`)."""
        return _scipy_law()(self.shape, scale=self.scale)


def _log1p_ratio(a: float, z: Floats) -> Floats:
    """ln(1 + az)/a; z at a = 0; inf beyond the support."""
    y = a * np.asarray(z, np.float64)
    if abs(a) < 1e-300:
        return np.asarray(z, np.float64)
    inside = y > -1
    ratio = np.log1p(np.where(inside, y, 0.0)) / a
    return np.where(inside, ratio, np.inf)


@cache
def _scipy_law() -> Any:
    from scipy import stats

    return symmetric_law(stats.genpareto, "dgenpareto")
