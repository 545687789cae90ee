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
class Laplace(Family):
    r"""The Laplace distribution: magnitudes are exponential.

    .. math:: f(g) = e^{-|g|/b} / 2b, \qquad P(|G| > m) = e^{-m/b}

    Both estimators are the mean magnitude, b = E|g|. The first stage of SIDCo-E.

    Args:
        scale: b > 0, in the unit of the gradient.

    References:
        Abdelmoniem et al., "An Efficient Statistical-based Gradient Compression Technique for
        Distributed Training Systems", MLSys 2021.

    Example:
        >>> import torch
        >>> law = Laplace.fit(torch.tensor([-1.0, 2.0, 0.0, 3.0]))
        >>> law
        Laplace(scale=2.0)
        >>> round(float(law.threshold(0.01)), 4)
        9.2103
    """

    scale: float
    name = "laplace"

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The mean magnitude."""
        require(moments.n > 0, cls, "no magnitude")
        return cls(moments.mean)

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """The mean magnitude, which maximises the likelihood."""
        return cls.from_moments(summary.moments())

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Ln of the mean."""
        return log_power_mean(logs, weights)

    @np.errstate(over="ignore")
    def logpdf(self, x: ArrayLike) -> Floats:
        """-|x|/b - ln 2b."""
        return np.asarray(-np.abs(x) / self.scale - math.log(2) - math.log(self.scale))

    @np.errstate(over="ignore")
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """-m/b."""
        return np.asarray(-magnitudes(magnitude) / self.scale)

    @np.errstate(over="ignore")
    def threshold(self, ratio: ArrayLike) -> Floats:
        """-b ln(ratio)."""
        return np.asarray(special.xlogy(-self.scale, shares(ratio)))

    def scipy(self) -> Any:
        """`scipy.stats.laplace`."""
        from scipy import stats

        return stats.laplace(scale=self.scale)
