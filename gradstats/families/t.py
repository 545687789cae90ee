from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from gradstats.families.base import Family, Floats, magnitudes, require, shares
from gradstats.families.likelihood import highest
from gradstats.families.search import falling_root, softplus
from gradstats.summary import Moments, Summary

LOWEST_SHAPE, HIGHEST_SHAPE = 0.2, 200.0
STARTS = np.geomspace(LOWEST_SHAPE, HIGHEST_SHAPE, 20)
SMALLEST_TAIL = 1e-290  # below it the incomplete beta function loses digits to underflow
LOG_SMALLEST_X = math.log(1e-100)  # of the first argument that the inverse is accurate for
LOWEST_WITH_VARIANCE = 2 + 1e-6


@dataclass(frozen=True)
class T(Family):
    r"""Student's t distribution: a power-law tail of index ν; ν = 1 is Cauchy, ν → ∞ normal.

    .. math:: f(g) = \frac{\Gamma(\frac{\nu+1}2)}{\sqrt{\pi\nu}\,b\,\Gamma(\frac\nu2)}
              \left(1 + \frac{g^2}{\nu b^2}\right)^{-\frac{\nu+1}2}, \qquad
              P(|G| > m) = I_x(\tfrac\nu2, \tfrac12), \quad x = \frac{\nu}{\nu + (m/b)^2}

    with I the regularised incomplete beta function. By `moments` (ν > 2) the ν at which

    .. math:: \frac{E g^2}{(E|g|)^2} = \frac{\pi}{\nu - 2}
              \left(\frac{\Gamma(\nu/2)}{\Gamma((\nu-1)/2)}\right)^2.

    By `mle`, the scale solves :math:`\overline{(\nu+1)\,g^2/(\nu b^2 + g^2)} = 1` at every ν, and
    the ν in [0.2, 200] maximises what remains.

    Args:
        shape: the degrees of freedom ν > 0, scipy's df.
        scale: b > 0, in the unit of the gradient.

    References:
        Lange, Little and Taylor, "Robust statistical modeling using the t distribution", 1989.

    Example:
        >>> round(float(T(shape=1.0, scale=1.0).kept(1.0)), 12)
        0.5
    """

    shape: float
    scale: float
    name = "t"
    special_cases = ("normal",)
    bounds = {"shape": (LOWEST_SHAPE, HIGHEST_SHAPE)}

    @property
    def tail_index(self) -> float:
        """ν: the tail falls as a power -ν of the magnitude."""
        return self.shape

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The degrees of freedom whose ratio of moments is that of the data."""
        require(moments.n >= 2, cls, f"needs 2 magnitudes for a variance, got {moments.n:g}")
        ratio = 1 + moments.var / moments.mean**2
        ends = (LOWEST_WITH_VARIANCE, HIGHEST_SHAPE)
        high, low = (_moment_ratio(shape) for shape in ends)
        fact = f"E g²/(E|g|)² must lie in [{low:.6g}, {high:.4g}], got {ratio:.6g}"
        require(low < ratio < high, cls, fact)
        shape = optimize.brentq(lambda shape: math.log(_moment_ratio(shape) / ratio), *ends)
        return cls(shape, moments.mean / _mean(shape))

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The highest profile likelihood over degrees of freedom."""
        weight, logs = summary.counts / summary.nonzero, summary.logs

        log_scale = float(weight @ logs)

        def profile(shape: float) -> float:
            nonlocal log_scale  # that of the last shape is the next one's guess
            log_scale = _log_scale(shape, logs, weight, log_scale)
            power = float(weight @ softplus(2 * (logs - log_scale) - math.log(shape)))
            return _log_constant(shape) - log_scale - (shape + 1) / 2 * power

        law = cls(highest(cls, profile, STARTS), 1.0)
        return replace(law, scale=math.exp(law.log_scale(logs, weight)))

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """The root of the equation above."""
        return _log_scale(self.shape, logs, weights, float(weights @ logs))

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """lnΓ((ν+1)/2) - lnΓ(ν/2) - ln(πν)/2 - ln b - (ν+1)/2 ln(1 + x²/νb²)."""
        power = (self.shape + 1) / 2 * softplus(self._log_square(np.abs(x)))
        return np.asarray(_log_constant(self.shape) - math.log(self.scale) - power)

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln I_x(ν/2, 1/2), by its power series in the far tail."""
        a, log_square = self.shape / 2, self._log_square(magnitudes(magnitude))
        log_x = -softplus(log_square)
        x, rest = np.exp(log_x), special.expit(log_square)
        tail = np.where(x < 0.5, special.betainc(a, 0.5, x), special.betaincc(0.5, a, rest))
        far, body = tail < SMALLEST_TAIL, tail > 0.5
        near = np.where(
            body,
            np.log1p(-special.betainc(0.5, a, np.where(body, rest, 0.0))),
            np.log(np.where(far, 1.0, tail)),
        )
        series = special.hyp2f1(a, 0.5, a + 1, np.where(far, x, 0.0))
        return np.where(
            far, a * log_x - math.log(a) - special.betaln(a, 0.5) + np.log(series), near
        )

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """The inverse of the incomplete beta function, from the end that keeps its digits."""
        a, ratio = self.shape / 2, shares(ratio)
        x = special.betaincinv(a, 0.5, np.minimum(ratio, 0.5))
        y = special.betainccinv(0.5, a, np.maximum(ratio, 0.5))
        # I_x is its first term where x is too small for the second
        with np.errstate(divide="ignore"):
            log_x = (np.log(ratio) + math.log(a) + special.betaln(a, 0.5)) / a
            square = np.where(ratio < 0.5, (1 - x) / x, y / (1 - y))
            far = np.exp(math.log(self.shape) / 2 + math.log(self.scale) - log_x / 2)
        near = self.scale * math.sqrt(self.shape) * np.sqrt(square)
        return np.asarray(np.where(log_x < LOG_SMALLEST_X, far, near))

    def _log_square(self, magnitude: Floats) -> Floats:
        """Ln (m/b)²/ν; -inf at 0."""
        with np.errstate(divide="ignore"):
            logs = np.log(np.asarray(magnitude, np.float64)) - math.log(self.scale)
        return np.asarray(2 * logs - math.log(self.shape))

    def scipy(self) -> Any:
        """`scipy.stats.t`."""
        from scipy import stats

        return stats.t(self.shape, scale=self.scale)


def _log_scale(shape: float, logs: Floats, weights: Floats, start: float) -> float:
    """Ln of the likeliest scale, which lies between the least magnitude and the largest."""
    squares = 2 * logs - math.log(shape)

    @np.errstate(over="ignore")
    def gap(log: float) -> tuple[float, float]:
        share = 1 / (1 + np.exp(2 * log - squares))
        mean = float(weights @ share)
        slope = -2 * (shape + 1) * (mean - float(weights @ share**2))
        return (shape + 1) * mean - 1, slope

    return falling_root(gap, float(logs.min()), float(logs.max()), start)


def _log_constant(shape: float) -> float:
    """Ln of the density at 0 for scale 1, -ln B(ν/2, 1/2) - ln(ν)/2."""
    return -float(special.betaln(shape / 2, 0.5)) - math.log(shape) / 2


def _mean(shape: float) -> float:
    """E|G| for scale 1, of ν > 1."""
    gammas = math.lgamma((shape - 1) / 2) - math.lgamma(shape / 2)
    return math.sqrt(shape / math.pi) * math.exp(gammas)


def _moment_ratio(shape: float) -> float:
    """E g²/(E|g|)² of the distribution with these degrees of freedom; it falls as they rise."""
    return shape / (shape - 2) / _mean(shape) ** 2
