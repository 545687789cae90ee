from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.likelihood import highest
from gradstats.families.search import log_power_mean
from gradstats.summary import Moments, Summary

LOWEST_SHAPE, HIGHEST_SHAPE = 0.1, 20.0
STARTS = np.geomspace(LOWEST_SHAPE, HIGHEST_SHAPE, 24)


@dataclass(frozen=True)
class DWeibull(Family):
    r"""The double Weibull distribution: magnitudes are Weibull distributed. Shape 1 is Laplace.

    .. math:: f(g) = \frac{c}{2b} \left(\frac{|g|}{b}\right)^{c-1} e^{-(|g|/b)^c}, \qquad
              P(|G| > m) = e^{-(m/b)^c}

    By `moments`, the shape at which

    .. math:: \frac{E g^2}{(E|g|)^2} = \frac{\Gamma(1 + 2/c)}{\Gamma(1 + 1/c)^2}, \qquad
              b = E|g| / \Gamma(1 + 1/c).

    By `mle`, the scale is :math:`b = (\overline{|g|^c})^{1/c}` at every shape, and the shape in
    [0.1, 20] maximises what remains.

    Args:
        shape: scipy's c > 0; below 1 the density rises without limit at 0 and the tail is heavier
            than Laplace's.
        scale: b > 0, in the unit of the gradient.

    References:
        Balakrishnan and Kocherlakota, "On the double Weibull distribution", 1985.

    Example:
        >>> round(float(DWeibull(shape=0.5, scale=1.0).threshold(0.01)), 4)
        21.2076
    """

    shape: float
    scale: float
    name = "dweibull"
    special_cases = ("laplace",)
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
        return cls(shape, moments.mean / math.gamma(1 + 1 / shape))

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The highest profile likelihood over shapes."""
        weight, logs = summary.counts / summary.nonzero, summary.logs
        mean_log = float(weight @ logs)

        def profile(shape: float) -> float:
            log_scale = cls(shape, 1.0).log_scale(logs, weight)
            return math.log(shape) - shape * log_scale + (shape - 1) * mean_log - 1

        law = cls(highest(cls, profile, STARTS), 1.0)
        return replace(law, scale=math.exp(law.log_scale(logs, weight)))

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Ln of the power mean of power c."""
        return log_power_mean(logs, weights, self.shape)

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """Ln (c/2b) + (c-1) ln(|x|/b) - (|x|/b)^c."""
        magnitude, log_scale = np.abs(x), math.log(self.scale)
        logs = special.xlogy(self.shape - 1, np.where(np.isinf(magnitude), 1.0, magnitude))
        power = logs - (magnitude / self.scale) ** self.shape
        return np.asarray(math.log(self.shape / 2) - self.shape * log_scale + power)

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """-(m/b)^c."""
        return np.asarray(-((magnitudes(magnitude) / self.scale) ** self.shape))

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """b (-ln ratio)^(1/c)."""
        return np.asarray(self.scale * special.xlogy(-1.0, shares(ratio)) ** (1 / self.shape))

    def scipy(self) -> Any:
        """`scipy.stats.dweibull`."""
        from scipy import stats

        return stats.dweibull(self.shape, scale=self.scale)


def _moment_ratio(shape: float) -> float:
    """E g²/(E|g|)² of the distribution of that shape; it falls as the shape rises."""
    return math.exp(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape))
