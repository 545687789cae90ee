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

SMALLEST_TAIL = 1e-290  # below it the incomplete gamma function loses digits to underflow


@dataclass(frozen=True)
class DGamma(Family):
    r"""The double gamma distribution: magnitudes are gamma distributed. Shape 1 is Laplace.

    .. math:: f(g) = |g|^{a-1} e^{-|g|/b} / 2 b^a \Gamma(a), \qquad P(|G| > m) = Q(a, m/b)

    with Q the regularised upper incomplete gamma function. By `moments`, with :math:`s = \ln E|g|
    - E\ln|g|`,

    .. math:: a = \frac{3 - s + \sqrt{(s-3)^2 + 24s}}{12s}, \qquad b = E|g| / a,

    the closed approximation to the solution of :math:`\ln a - \psi(a) = s` that `mle` solves. The
    first stage of SIDCo-GP, which inverts Q exactly; the approximation of the inverse near a = 1
    that the paper also gives is not used.

    Args:
        shape: a > 0.
        scale: b > 0, in the unit of the gradient.

    References:
        Minka, "Estimating a Gamma distribution", 2002; Abdelmoniem et al., MLSys 2021.

    Example:
        >>> round(float(DGamma(shape=1.0, scale=2.0).kept(2.0)), 6)
        0.367879
    """

    shape: float
    scale: float
    name = "dgamma"
    special_cases = ("laplace",)
    bounds = {"shape": (0.0, math.inf)}

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The closed form above."""
        s = _log_gap(cls, moments)
        shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
        return cls(shape, moments.mean / shape)

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """Newton's method on 1/a, from the closed form."""
        moments = summary.moments()
        s = _log_gap(cls, moments)
        shape = cls.from_moments(moments).shape
        for _ in range(50):
            gap = math.log(shape) - float(special.digamma(shape)) - s
            slope = shape - shape**2 * float(special.polygamma(1, shape))
            previous, shape = shape, 1 / (1 / shape + gap / slope)
            if abs(shape - previous) <= 1e-12 * shape:
                break
        return cls(shape, moments.mean / shape)

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Ln of the mean over a."""
        return log_power_mean(logs, weights) - math.log(self.shape)

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """(a-1) ln|x| - |x|/b - ln 2 - a ln b - lnΓ(a)."""
        a, b, magnitude = self.shape, self.scale, np.abs(x)
        beyond = np.isinf(magnitude)  # where the power is inf too
        power = special.xlogy(a - 1, np.where(beyond, 1.0, magnitude))
        return np.asarray(power - magnitude / b - math.log(2) - a * math.log(b) - math.lgamma(a))

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln Q(a, m/b), by its continued fraction in the far tail."""
        return log_gammaincc(self.shape, magnitudes(magnitude) / self.scale)

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """The inverse of the incomplete gamma function: b Q⁻¹(a, ratio)."""
        return np.asarray(self.scale * special.gammainccinv(self.shape, shares(ratio)))

    def scipy(self) -> Any:
        """`scipy.stats.dgamma`."""
        from scipy import stats

        return stats.dgamma(self.shape, scale=self.scale)


def _log_gap(family: type[Family], moments: Moments) -> float:
    """s = ln mean - mean ln, positive unless all magnitudes are equal."""
    require(moments.distinct, family, f"all {moments.n:g} magnitudes share one bin")
    s = math.log(moments.mean) - moments.mean_log
    require(s > 0, family, f"ln mean - mean ln must be positive, got {s!r}")
    return s


def log_gammaincc(a: float, z: Floats) -> Floats:
    """Ln Q(a, z), also where Q is near 1, and where it underflows: by Legendre's fraction.

    Q(a, z) = z^a e^-z / Γ(a) · 1/(z+1-a - 1(1-a)/(z+3-a - 2(2-a)/(z+5-a - …))).
    """
    tail = special.gammaincc(a, z)
    far, endless = tail < SMALLEST_TAIL, np.isinf(z)
    near = np.where(
        tail > 0.5,
        np.log1p(-special.gammainc(a, np.where(tail > 0.5, z, 0.0))),
        np.log(np.where(far, 1.0, tail)),
    )
    z = np.where(far & ~endless, z, 1e3 * (1 + a))  # other values only need not to warn
    fraction = np.zeros_like(z)
    for i in range(60, 0, -1):
        fraction = i * (i - a) / (z + 2 * i + 1 - a - fraction)
    log = a * np.log(z) - z - math.lgamma(a) - np.log(z + 1 - a - fraction)
    return np.where(endless, -np.inf, np.where(far, log, near))
