"""Families as newcomers write them by docs/adding-a-family.md: correct, each in its own way."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradstats.families import Family, highest, magnitudes, require, shares, symmetric_law

CATALAN = 0.915965594177219


def likeliest(law, summary):
    """The distribution with the scale of the highest likelihood."""
    scale = math.exp(law.log_scale(summary.logs, summary.counts / summary.nonzero))
    return type(law)(**{**law.parameters, "scale": scale})


@dataclass(frozen=True)
class HypSecant(Family):
    """The hyperbolic secant, sech(x/s)/(pi s); its median is 1e-16, as that of scipy."""

    scale: float
    name = "hypsecant"

    @classmethod
    def from_moments(cls, moments):
        require(moments.n > 0, cls, "no magnitude")
        return cls(moments.mean * math.pi / (4 * CATALAN))

    @classmethod
    def from_likelihood(cls, summary):
        return likeliest(cls(1.0), summary)

    def logpdf(self, x):
        z = np.abs(x) / self.scale
        return math.log(2 / (math.pi * self.scale)) - z - np.log1p(np.exp(-2 * z))

    def log_kept(self, magnitude):
        z = magnitudes(magnitude) / self.scale
        near = np.log(np.arctan(np.exp(-np.minimum(z, 50.0))))
        return math.log(4 / math.pi) + np.where(z > 50, -z, near)

    @np.errstate(divide="ignore")
    def threshold(self, ratio):
        return -self.scale * np.log(np.tan(math.pi * shares(ratio) / 4))

    def scipy(self):
        return stats.hypsecant(scale=self.scale)


@dataclass(frozen=True)
class ExactHypSecant(HypSecant):
    """The same with a median of exactly 0, which scipy's is not."""

    @np.errstate(divide="ignore")
    def threshold(self, ratio):
        magnitude = self.scale * np.arcsinh(1 / np.tan(math.pi * shares(ratio) / 2))
        return np.where(shares(ratio) == 1, 0.0, magnitude)


@dataclass(frozen=True)
class SymmetricLogistic(Family):
    """The logistic, whose functions are written of the signed value."""

    scale: float
    name = "logistic"
    methods = ("mle",)

    @classmethod
    def from_likelihood(cls, summary):
        return likeliest(cls(1.0), summary)

    @np.errstate(over="ignore")
    def logpdf(self, x):
        z = np.asarray(x, float) / self.scale
        return np.where(z > -700, -z - 2 * np.log1p(np.exp(-z)), z) - math.log(self.scale)

    def log_kept(self, magnitude):
        z = magnitudes(magnitude) / self.scale
        return math.log(2) - z - np.log1p(np.exp(-z))

    @np.errstate(divide="ignore")
    def threshold(self, ratio):
        return self.scale * (np.log(2 - shares(ratio)) - np.log(shares(ratio)))

    def scipy(self):
        return stats.logistic(scale=self.scale)


@dataclass(frozen=True)
class Cauchy(Family):
    """A family without moments, and without a closed form of them."""

    scale: float
    name = "cauchy"
    methods = ("mle",)
    tail_index = 1.0

    @classmethod
    def from_likelihood(cls, summary):
        return likeliest(cls(1.0), summary)

    def logpdf(self, x):
        return -np.log(math.pi * self.scale) - np.log1p((np.asarray(x) / self.scale) ** 2)

    def log_kept(self, magnitude):
        return np.log(2 / math.pi * np.arctan2(self.scale, magnitudes(magnitude)))

    def threshold(self, ratio):
        ratio = shares(ratio)
        with np.errstate(divide="ignore"):
            return self.scale / np.tan(math.pi * ratio / 2)

    def scipy(self):
        return stats.cauchy(scale=self.scale)


@dataclass(frozen=True)
class TwoSidedLomax(Family):
    """A power law on both sides, whose shape is searched for."""

    shape: float
    scale: float
    name = "lomax"
    methods = ("mle",)
    bounds = {"shape": (0.5, 50.0)}

    @property
    def tail_index(self):
        return self.shape

    @classmethod
    def from_likelihood(cls, summary):
        weights = summary.counts / summary.nonzero

        def profile(shape):
            return float(weights @ likeliest(cls(shape, 1.0), summary).logpdf(summary.centres))

        return likeliest(cls(highest(cls, profile, np.geomspace(0.5, 50.0, 20)), 1.0), summary)

    def logpdf(self, x):
        power = (self.shape + 1) * np.log1p(np.abs(x) / self.scale)
        return math.log(self.shape / (2 * self.scale)) - power

    def log_kept(self, magnitude):
        return -self.shape * np.log1p(magnitudes(magnitude) / self.scale)

    def threshold(self, ratio):
        with np.errstate(divide="ignore", over="ignore"):
            return self.scale * np.expm1(-np.log(shares(ratio)) / self.shape)

    def scipy(self):
        return symmetric_law(stats.lomax, "lomax")(self.shape, scale=self.scale)


@dataclass(frozen=True)
class TwoSidedHalfNormal(Family):
    """The normal, with a one-sided scipy distribution that has no shape."""

    scale: float
    name = "halfnorm"
    methods = ("moments", "mle")

    @classmethod
    def from_moments(cls, moments):
        return cls(moments.mean * math.sqrt(math.pi / 2))

    @classmethod
    def from_likelihood(cls, summary):
        return likeliest(cls(1.0), summary)

    def logpdf(self, x):
        return stats.norm.logpdf(np.abs(x), scale=self.scale)

    def log_kept(self, magnitude):
        return math.log(2) + stats.norm.logsf(magnitudes(magnitude), scale=self.scale)

    def threshold(self, ratio):
        return stats.norm.isf(shares(ratio) / 2, scale=self.scale)

    def scipy(self):
        return symmetric_law(stats.halfnorm, "halfnorm")(scale=self.scale)


@dataclass(frozen=True)
class InverseExponential(Family):
    """Laplace mirrored in ln|g|: 1/|G| is exponential."""

    scale: float
    name = "inverse-exponential"
    methods = ("mle",)
    tail_index = 1.0

    @classmethod
    def from_likelihood(cls, summary):
        weights = summary.counts / summary.nonzero
        return cls(1 / float(weights @ np.exp(-summary.logs)))

    def logpdf(self, x):
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.abs(x) / self.scale
            log = -2 * np.log(z) - 1 / z - math.log(2 * self.scale)
        return np.where(z == 0, -np.inf, log)

    def log_kept(self, magnitude):
        with np.errstate(divide="ignore"):
            return np.log(-np.expm1(-self.scale / magnitudes(magnitude)))

    def threshold(self, ratio):
        with np.errstate(divide="ignore"):
            return -self.scale / np.log1p(-shares(ratio))

    def scipy(self):
        return symmetric_law(stats.invweibull, "invexp")(1.0, scale=self.scale)


CORRECT = (
    InverseExponential(2.0),
    HypSecant(0.3),
    HypSecant(2.0),
    HypSecant(1e-5),
    ExactHypSecant(2.0),
    SymmetricLogistic(2.0),
    SymmetricLogistic(1 / 4),  # its logpdf(0) is 0
    Cauchy(0.7),
    TwoSidedLomax(4.5, 0.02),
    TwoSidedHalfNormal(3.0),
)
