from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.symmetric import symmetric_law
from gradstats.summary import Moments, Summary


@dataclass(frozen=True)
class LogNorm(Family):
    r"""The distribution whose magnitudes are log-normal.

    Ln|G| is normal, both signs are equally likely.

    .. math:: f(g) = \frac{1}{2\sqrt{2\pi}\,s\,|g|} e^{-\ln^2(|g|/b) / 2s^2}, \qquad
              P(|G| > m) = \Phi(-\ln(m/b)/s)

    By `moments`, :math:`s^2 = \ln(E g^2/(E|g|)^2)` and :math:`b = E|g|\,e^{-s^2/2}`; by `mle`, b
    is the geometric mean of the magnitudes and s² the variance of their logarithms. Products of
    many factors converge to it; its density vanishes at 0, unlike the density of gradients.

    Args:
        shape: scipy's s > 0, the standard deviation of ln|G|.
        scale: b > 0, the median magnitude, in the unit of the gradient.

    References:
        Chmiel et al., "Neural gradients are near-lognormal", ICLR 2021.

    Example:
        >>> float(LogNorm(shape=1.5, scale=2.0).kept(2.0))
        0.5
    """

    shape: float
    scale: float
    name = "lognorm"
    bounds = {"shape": (0.0, math.inf)}

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The closed form above."""
        require(moments.n >= 2, cls, f"needs 2 magnitudes for a variance, got {moments.n:g}")
        require(moments.var > 0, cls, f"the variance must be positive, got {moments.var!r}")
        variance = math.log1p(moments.var / moments.mean**2)
        return cls(math.sqrt(variance), moments.mean * math.exp(-variance / 2))

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """Mean and standard deviation of the logarithms."""
        weight, logs = summary.counts / summary.nonzero, summary.logs
        mean = float(weight @ logs)
        return cls(math.sqrt(float(weight @ (logs - mean) ** 2)), math.exp(mean))

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """The mean logarithm."""
        return float(weights @ logs)

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """-z²/2 - ln(2√2π s|x|) with z = ln(|x|/b)/s; -inf at 0."""
        x = np.abs(np.asarray(x, np.float64))
        zero = x == 0
        logs = np.log(np.where(zero, 1.0, x))
        z = (logs - math.log(self.scale)) / self.shape
        log = -z * z / 2 - logs - math.log(2 * math.sqrt(2 * math.pi) * self.shape)
        return np.where(zero, -np.inf, log)

    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln Φ(-ln(m/b)/s)."""
        with np.errstate(divide="ignore"):
            logs = np.log(magnitudes(magnitude)) - math.log(self.scale)
        return np.asarray(special.log_ndtr(-logs / self.shape))

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """b exp(-s Φ⁻¹(ratio))."""
        return np.asarray(self.scale * np.exp(-self.shape * special.ndtri(shares(ratio))))

    def scipy(self) -> Any:
        """`dlognorm` as a scipy distribution (scipy has only the one-sided `lognorm`)."""
        return _scipy_law()(self.shape, scale=self.scale)


@cache
def _scipy_law() -> Any:
    from scipy import stats

    return symmetric_law(stats.lognorm, "dlognorm")
