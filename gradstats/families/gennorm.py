from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.dgamma import log_gammaincc
from gradstats.families.likelihood import highest
from gradstats.families.search import log_power_mean
from gradstats.summary import Moments, Summary

LOWEST_SHAPE, HIGHEST_SHAPE = 0.1, 20.0
FIRST_TERM = 1e-17  # of (m/b)^β, below which the second term of the series is lost in rounding
STARTS = np.geomspace(LOWEST_SHAPE, HIGHEST_SHAPE, 24)


@dataclass(frozen=True)
class GenNorm(Family):
    r"""The generalized normal (exponential power) distribution; shape 1 is Laplace, 2 normal.

    .. math:: f(g) = \frac{\beta}{2b\,\Gamma(1/\beta)} e^{-(|g|/b)^\beta}, \qquad
              P(|G| > m) = Q(1/\beta, (m/b)^\beta)

    with Q the regularised upper incomplete gamma function. By `moments`, the shape at which

    .. math:: \frac{E g^2}{(E|g|)^2} = \frac{\Gamma(1/\beta)\,\Gamma(3/\beta)}{\Gamma(2/\beta)^2},
              \qquad b = E|g|\,\Gamma(1/\beta)/\Gamma(2/\beta).

    By `mle`, the scale is :math:`b = (\beta\,\overline{|g|^\beta})^{1/\beta}` at every shape, and
    the shape in [0.1, 20] maximises what remains.

    Args:
        shape: scipy's beta > 0; below 1 more peaked and heavier-tailed than Laplace.
        scale: b > 0, in the unit of the gradient.

    References:
        Mallat, "A theory for multiresolution signal decomposition", 1989 (the moment estimator);
        Nadarajah, "A generalized normal distribution", 2005.

    Example:
        >>> round(float(GenNorm(shape=1.0, scale=2.0).kept(2.0)), 6)
        0.367879
    """

    shape: float
    scale: float
    name = "gennorm"
    special_cases = ("laplace", "normal")
    bounds = {"shape": (LOWEST_SHAPE, HIGHEST_SHAPE)}

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The shape whose ratio of moments is that of the data."""
        require(moments.n >= 2, cls, f"needs 2 magnitudes for a variance, got {moments.n:g}")
        ratio = 1 + moments.var / moments.mean**2
        low, high = (_moment_ratio(shape) for shape in (HIGHEST_SHAPE, LOWEST_SHAPE))
        fact = f"E g²/(E|g|)² must lie in [{low:.4g}, {high:.4g}], got {ratio:.6g}"
        require(low < ratio < high, cls, fact)
        shape = optimize.brentq(
            lambda shape: math.log(_moment_ratio(shape) / ratio), LOWEST_SHAPE, HIGHEST_SHAPE
        )
        mean = math.exp(math.lgamma(2 / shape) - math.lgamma(1 / shape))
        return cls(shape, moments.mean / mean)

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The highest profile likelihood over shapes."""
        weight, logs = summary.counts / summary.nonzero, summary.logs

        def profile(shape: float) -> float:
            log_scale = cls(shape, 1.0).log_scale(logs, weight)
            return math.log(shape) - log_scale - math.lgamma(1 / shape) - 1 / shape

        law = cls(highest(cls, profile, STARTS), 1.0)
        return replace(law, scale=math.exp(law.log_scale(logs, weight)))

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Ln of the power mean of power β, times β^(1/β)."""
        return log_power_mean(logs, weights, self.shape) + math.log(self.shape) / self.shape

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """Ln β - ln 2b - lnΓ(1/β) - (|x|/b)^β."""
        power = (np.abs(x) / self.scale) ** self.shape
        constant = math.log(self.shape / 2) - math.log(self.scale) - math.lgamma(1 / self.shape)
        return np.asarray(constant - power)

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln Q(1/β, (m/b)^β), by its continued fraction in the far tail; near 0, -z/Γ(1 + 1/β)."""
        z = magnitudes(magnitude) / self.scale
        power = z**self.shape
        near = power < FIRST_TERM
        first = np.log1p(-np.where(near, z, 0.0) / math.gamma(1 + 1 / self.shape))
        return np.where(near, first, log_gammaincc(1 / self.shape, power))

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """b Q⁻¹(1/β, ratio)^(1/β)."""
        return np.asarray(
            self.scale * special.gammainccinv(1 / self.shape, shares(ratio)) ** (1 / self.shape)
        )

    def scipy(self) -> Any:
        """`scipy.stats.gennorm`."""
        from scipy import stats

        return stats.gennorm(self.shape, scale=self.scale)


def _moment_ratio(shape: float) -> float:
    """E g²/(E|g|)² of the distribution of that shape; it falls as the shape rises."""
    first, second, third = (math.lgamma(order / shape) for order in (1, 2, 3))
    return math.exp(first + third - 2 * second)
