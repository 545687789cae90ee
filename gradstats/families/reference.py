"""Distributions of scipy.stats by name, such as `scipy:hypsecant`: slow, and never ranked.

Each is an attribute of this module, made when it is first asked for, so that tasks in other
processes find it by import.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from gradstats.families.base import (
    FEWEST_DISTINCT,
    Family,
    FitError,
    Floats,
    did_you_mean,
    magnitudes,
    require,
    shares,
)
from gradstats.families.sampling import subsample
from gradstats.summary import Summary

PREFIX = "scipy:"
SAMPLE = 10_000  # elements that scipy fits
SEED = 0  # of their choice
HALVINGS = 60


@dataclass(frozen=True)
class Reference(Family):
    r"""A distribution of scipy.stats with loc 0, for comparison with the families.

    It is fitted by scipy's own maximum likelihood to at most 10,000 random elements (seed 0). A
    distribution of positive values is fitted to magnitudes, any other to signed elements. Scores
    are those of the magnitudes: an asymmetric density counts by its mean over both signs,

    .. math:: f(m) = (f_s(m) + f_s(-m)) / 2, \qquad P(|G| > m) = 1 - F_s(m) + F_s(-m).

    Args:
        shapes: scipy's shape parameters.
        scale: scipy's scale, in the unit of the gradient.
    """

    shapes: tuple[float, ...]
    scale: float
    methods = ("mle",)
    positive = ("scale",)
    reference = True
    law: ClassVar[Any]  # of scipy.stats

    @property
    def parameters(self) -> dict[str, float]:
        """The scale, and the shape if there is just one."""
        shape = {"shape": self.shapes[0]} if len(self.shapes) == 1 else {}
        return {**shape, "scale": self.scale}

    @property
    def free(self) -> int:
        """All shapes and the scale."""
        return len(self.shapes) + 1

    def fitted_to(self, summary: Summary) -> str:
        """What it was fitted to and the values of all shapes, in words."""
        kind = "magnitudes" if _one_sided(self.law) else "elements"
        size = f"{min(SAMPLE, summary.nonzero):,} of {summary.nonzero:,} {kind}"
        names = (self.law.shapes or "").replace(" ", "").split(",")
        shapes = [f"{n}={v:.6g}" for n, v in zip(names, self.shapes, strict=False)]
        return ", ".join([f"reference: fitted by scipy to {size}, loc 0, seed {SEED}", *shapes])

    @classmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """scipy's fit of a subsample, divided by its mean magnitude."""
        fact = f"{summary.spread}, at least {FEWEST_DISTINCT} are needed"
        require(summary.distinct >= FEWEST_DISTINCT, cls, fact)
        size, rng = min(SAMPLE, summary.nonzero), np.random.default_rng(SEED)
        sample = subsample(summary, size, rng, signed=not _one_sided(cls.law))
        unit = float(np.abs(sample).mean())
        try:
            with _quietly():
                *shapes, _, scale = map(float, cls.law.fit(sample / unit, floc=0))
                mean = float(cls.law.logpdf(sample / unit, *shapes, scale=scale).mean())
        except Exception as error:  # scipy's searches raise errors of many classes
            raise FitError(f"cannot fit {cls.name}: {type(error).__name__}: {error}") from error
        require(math.isfinite(mean), cls, f"scipy's search ended at likelihood {mean}")
        return cls(tuple(shapes), scale * unit)

    def logpdf(self, x: ArrayLike) -> Floats:
        """Ln of the mean density of x and -x."""
        x = np.abs(np.asarray(x, np.float64))
        with _quietly():
            signs = [self._of("logpdf", each) for each in (x, -x)]
            return np.asarray(np.logaddexp(*signs) - math.log(2))

    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """Ln of 1 - F(m) + F(-m); -inf where scipy's probabilities underflow."""
        x = magnitudes(magnitude)
        with _quietly():
            kept = self._of("sf", x) + self._of("cdf", -x)
            return np.where(np.isnan(x), np.nan, np.log(np.clip(kept, 0.0, 1.0)))

    def threshold(self, ratio: ArrayLike) -> Floats:
        """scipy's isf; by bisection where both sides differ."""
        ratio = shares(ratio)
        with _quietly():
            if _one_sided(self.law):
                return self._of("isf", ratio)
            sides = self._of("isf", ratio / 2), -self._of("ppf", ratio / 2)
            low, high = np.maximum(np.minimum(*sides), 0.0), np.maximum(*sides)
            alike = np.isclose(low, high, rtol=1e-9, atol=1e-12 * self.scale) | (ratio == 0)
            return high if alike.all() else np.where(alike, high, self._between(low, high, ratio))

    def _between(self, low: Floats, high: Floats, ratio: Floats) -> Floats:
        """The magnitudes in brackets that keep the ratios."""
        low, high = (np.where(np.isfinite(high), each, 0.0) for each in (low, high))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = self.kept(middle) > ratio
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return (low + high) / 2

    def _of(self, function: str, values: Floats) -> Floats:
        own = getattr(self.law, function)
        return np.asarray(own(values, *self.shapes, scale=self.scale), np.float64)

    def scipy(self) -> Any:
        """The distribution of scipy.stats."""
        return self.law(*self.shapes, scale=self.scale)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of scipy's searches and tails."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _one_sided(law: Any) -> bool:
    return bool(law.a >= 0)


@cache
def reference(name: str) -> type[Reference]:
    """Look up a distribution of scipy.stats as a family.

    Args:
        name: scipy's name, such as "hypsecant".

    Raises:
        ValueError: scipy.stats has no continuous distribution of that name; the error names the
            nearest one.

    Example:
        >>> reference("hypsecant").name
        'scipy:hypsecant'
    """
    from scipy import stats

    law = getattr(stats, name, None)
    if not isinstance(law, stats.rv_continuous):
        known = [n for n, each in vars(stats).items() if isinstance(each, stats.rv_continuous)]
        rule = "family must be scipy: and a continuous distribution of scipy.stats"
        near = did_you_mean(name, known).replace("did you mean ", f"did you mean {PREFIX}")
        raise ValueError(f"{rule}, got {PREFIX + name!r}{near}")
    contents = {"name": PREFIX + name, "law": law, "__module__": __name__, "__qualname__": name}
    return type(name, (Reference,), {**contents, "__doc__": f"`scipy.stats.{name}` with loc 0."})


def __getattr__(name: str) -> type[Reference]:
    if not name.startswith("_"):
        try:
            return reference(name)
        except ValueError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
