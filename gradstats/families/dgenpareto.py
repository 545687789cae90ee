from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from gradstats.families.base import Family, Floats, require
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
    [-1/2, 5].

    Args:
        shape: a, positive for heavy tails (scipy's sign).
        scale: b > 0, in the unit of the gradient.

    References:
        Hosking and Wallis, "Parameter and quantile estimation for the generalized Pareto
        distribution", 1987; Abdelmoniem et al., MLSys 2021.

    Example:
        >>> law = DGenPareto(shape=0.2, scale=1.0)
        >>> round(float(law.kept(law.threshold(0.001))), 12)
        0.001
    """

    shape: float
    scale: float
    name = "dgenpareto"

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
        """Search over (shape, ln scale) from the moments and from fixed shapes."""
        moments = summary.moments()
        start = cls.from_moments(moments)
        x, weight, mean = summary.centres, summary.counts / summary.nonzero, moments.mean
        top = summary.max_abs

        def cost(point: Floats) -> float:
            shape, scale = float(point[0]), mean * math.exp(point[1])
            if 1 + shape * top / scale <= 0:
                return math.inf
            return -float(weight @ cls(shape, scale).logpdf(x))

        shapes = {0.0, 0.2, min(max(start.shape, LOWEST_SHAPE / 2), 0.45)}
        bounds = [(LOWEST_SHAPE, HIGHEST_SHAPE), (-12.0, 6.0)]
        found = [
            optimize.minimize(
                cost,
                [shape, math.log(max(1 - shape, -1.01 * shape * top / mean))],
                method="Nelder-Mead",
                bounds=bounds,
                options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 2000},
            )
            for shape in sorted(shapes)
        ]
        best = min(found, key=lambda result: result.fun)
        require(bool(best.success), cls, f"the likelihood search ended with {best.message!r}")
        return cls(float(best.x[0]), mean * math.exp(best.x[1]))

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

    half = stats.genpareto

    class dgenpareto_gen(stats.rv_continuous):  # type: ignore[misc]
        """Symmetric about 0 with generalized Pareto magnitudes."""

        def _argcheck(self, c: Floats) -> Any:
            return np.isfinite(c)

        def _get_support(self, c: Floats) -> Any:
            end = half.support(c)[1]
            return -end, end

        def _pdf(self, x: Floats, c: Floats) -> Any:
            return half.pdf(np.abs(x), c) / 2

        def _sf(self, x: Floats, c: Floats) -> Any:
            tail = half.sf(np.abs(x), c) / 2
            return np.where(x >= 0, tail, 1 - tail)

        def _cdf(self, x: Floats, c: Floats) -> Any:
            return self._sf(-x, c)

        def _isf(self, q: Floats, c: Floats) -> Any:
            magnitude = half.isf(2 * np.minimum(q, 1 - q), c)
            return np.where(q <= 0.5, magnitude, -magnitude)

        def _ppf(self, q: Floats, c: Floats) -> Any:
            return -self._isf(q, c)

    return dgenpareto_gen(name="dgenpareto")
