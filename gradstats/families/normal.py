from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.search import log_power_mean
from gradstats.summary import Moments, Summary


@dataclass(frozen=True)
class Normal(Family):
    r"""The normal distribution about 0, for comparison: trained gradients rarely follow it.

    .. math:: f(g) = e^{-g^2/2\sigma^2} / \sqrt{2\pi}\sigma, \qquad
              P(|G| > m) = \mathrm{erfc}(m/\sqrt{2}\sigma)

    Both estimators are the root mean square, :math:`\sigma^2 = E\,g^2`.

    Args:
        scale: sigma > 0, in the unit of the gradient.

    Example:
        >>> import torch
        >>> Normal.fit(torch.tensor([-1.0, 1.0, 0.0]))
        Normal(scale=1.0)
    """

    scale: float
    name = "normal"

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """Root of mean² + the biased variance, the mean square of the magnitudes."""
        require(moments.n > 0, cls, "no magnitude")
        n = moments.n
        var = moments.var * (n - 1) / n if n > 1 else 0.0
        return cls(math.sqrt(moments.mean**2 + var))

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The root mean square, which is the maximum of the likelihood."""
        return cls.from_moments(summary.moments())

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Ln of the root mean square."""
        return log_power_mean(logs, weights, 2.0)

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """-x²/2σ² - ln(√2π σ)."""
        z = np.asarray(x, np.float64) / self.scale
        return -z * z / 2 - math.log(2 * math.pi) / 2 - math.log(self.scale)

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln 2Φ(-m/σ)."""
        z = magnitudes(magnitude) / self.scale
        near = np.log1p(-special.erf(np.minimum(z, 1.0) / math.sqrt(2)))
        return np.asarray(np.where(z < 1, near, special.log_ndtr(-z) + math.log(2)))

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """-σ Φ⁻¹(ratio/2), in logarithms where half the ratio is no normal number."""
        share = shares(ratio)
        with np.errstate(divide="ignore"):
            logs = np.log(share) - math.log(2)
        tail = (share > 0) & (share < 1e-300)
        inverse = np.where(tail, special.ndtri_exp(logs), special.ndtri(share / 2))
        return np.asarray(-self.scale * inverse)

    def scipy(self) -> Any:
        """`scipy.stats.norm`."""
        from scipy import stats

        return stats.norm(scale=self.scale)
