"""The base of families: distributions symmetric about zero, fitted to a gradient's magnitudes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gradstats.families.search import peak
from gradstats.summary import Moments, Summary, summarize

Floats = NDArray[np.float64]
FEWEST_DISTINCT = 10  # magnitudes (bins of the grid) from which a shape can be told
TINY = 1e-300  # a magnitude at which every density that is not 0 at 0 has a logarithm
AT_BOUND = 1e-4  # relative to the bound, or absolute near 0


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean laplace?` with the nearest of the names; empty if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(str(name).lower(), list(by_lower), n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


class FitError(ValueError):
    """Raised if the data do not determine the parameters of a family."""


class Family(ABC):
    """A distribution of G, symmetric about 0; subclasses are frozen dataclasses of its parameters.

    A family writes four things: `log_kept` and its inverse `threshold`, `logpdf`, and its
    estimators. Names and signs of the parameters are those of scipy.stats; `scale` has the unit of
    the gradient, `shape` has none.

    Attributes:
        name: its name in the grammar, tables and legends.
        methods: the available estimators: "moments", the closed form that SIDCo uses, and "mle",
            maximum likelihood.
        bounds: the (lowest, highest) value that `mle` tries, for each parameter that it searches
            for.
        positive: parameters that must be above 0; all must be finite.
        special_cases: names of the families that it contains: that it equals at some shape.
        reference: whether it is shown for comparison alone, and never ranked.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]] = ("moments", "mle")
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    positive: ClassVar[tuple[str, ...]] = ("shape", "scale")
    special_cases: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in self.parameters.items():
            rule = "positive and finite" if name in self.positive else "finite"
            if not math.isfinite(value) or (name in self.positive and value <= 0):
                raise ValueError(f"{name} of {self.name} must be {rule}, got {value!r}")

    @classmethod
    def fit(cls, data: Tensor | NDArray[np.floating] | Summary, *, method: str = "mle") -> Self:
        """Fit this distribution to the finite non-zero magnitudes of a gradient.

        Args:
            data: a gradient of any shape, or its Summary.
            method: "mle" (maximum likelihood), or "moments" (closed form) for the families that
                have it; `methods` lists those of a family.

        Returns:
            The distribution with its fitted parameters.

        Raises:
            ValueError: the family does not have this method.
            FitError: the data do not determine the parameters, for example because they are empty
                or constant.
        """
        cls.check_method(method)
        summary = summarize(data)
        if summary.nonzero == 0:
            raise FitError(
                f"cannot fit {cls.name}: no finite non-zero magnitude among {summary.n} elements "
                f"({summary.zeros} zeros, {summary.nonfinite} NaN or inf)"
            )
        fact = f"{summary.spread}, at least {FEWEST_DISTINCT} are needed"
        require(not cls.bounds or summary.distinct >= FEWEST_DISTINCT, cls, fact)
        unit, scaled = summary.over_power
        try:
            moments = method == "moments"
            law = cls.from_moments(scaled.moments()) if moments else cls.from_likelihood(scaled)
            return replace(law, scale=law.parameters["scale"] * unit)  # type: ignore[type-var]
        except FitError:
            raise
        except (ArithmeticError, ValueError) as error:
            raise FitError(f"cannot fit {cls.name}: {error}") from error

    @classmethod
    def check_method(cls, method: str) -> None:
        """Raise ValueError unless the family has an estimator of that name."""
        if method not in cls.methods:
            rule = f"method of {cls.name} must be one of {', '.join(cls.methods)}"
            raise ValueError(f"{rule}, got {method!r}{did_you_mean(method, cls.methods)}")

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """Estimate the parameters from moments of the magnitudes, in closed form.

        A family without a closed form leaves it out, and sets `methods = ("mle",)`.

        Raises:
            FitError: the moments do not determine the parameters.
        """
        raise FitError(f"cannot fit {cls.name} by moments: the class has no from_moments")

    @classmethod
    @abstractmethod
    def from_likelihood(cls, summary: Summary) -> Self:
        """Estimate the parameters by maximum likelihood.

        FitError if the data do not determine them.
        """

    @abstractmethod
    def logpdf(self, x: ArrayLike) -> Floats:
        """ln f(x) of the signed value."""

    @abstractmethod
    def log_kept(self, magnitude: ArrayLike) -> Floats:
        """ln P(|G| > magnitude), accurate in tails where the probability itself underflows.

        It is 0 for a negative magnitude.
        """

    @abstractmethod
    def threshold(self, ratio: ArrayLike) -> Floats:
        """The magnitude that keeps `ratio` of the elements: the inverse of `kept`.

        Raises:
            ValueError: a ratio is outside [0, 1].
        """

    @abstractmethod
    def scipy(self) -> Any:
        """The same distribution as a frozen scipy.stats distribution."""

    @property
    def parameters(self) -> dict[str, float]:
        """Parameter names and values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]

    @property
    def free(self) -> int:
        """Number of parameters that a fit chooses."""
        return len(self.parameters)

    @property
    def at_bound(self) -> tuple[str, ...]:
        """The parameters at an end of the range that `mle` searches, or beyond it."""
        return tuple(
            name
            for name, ends in self.bounds.items()
            for sign, end in zip((1, -1), ends, strict=True)
            if math.isfinite(end)
            and sign * (self.parameters[name] - end) <= AT_BOUND * max(abs(end), 1e-2)
        )

    def log_scale(self, logs: Floats, weights: Floats) -> float:
        """Return ln of the likeliest scale of these magnitudes, with the shape kept.

        Families whose scale has a closed form override it.

        Args:
            logs: ln of the magnitudes, `[m]`.
            weights: the weight of each, `[m]`, with sum 1.
        """
        unit = replace(self, scale=1.0)  # type: ignore[type-var]

        @np.errstate(over="ignore", invalid="ignore", divide="ignore")
        def likelihood(log_scale: float) -> float:
            magnitudes = np.maximum(np.exp(logs - log_scale), TINY)
            mean = float(weights @ unit.logpdf(magnitudes)) - log_scale
            return -math.inf if math.isnan(mean) else mean

        return peak(likelihood, float(weights @ logs))

    @property
    def tail_index(self) -> float:
        """The number below which E|G|^r is finite; inf for a tail lighter than any power."""
        return math.inf

    def kept(self, magnitude: ArrayLike) -> Floats:
        """P(|G| > magnitude); 1 for a negative magnitude, NaN for NaN."""
        return np.exp(self.log_kept(magnitude))

    def pdf(self, x: ArrayLike) -> Floats:
        """f(x) of the signed value."""
        return np.exp(self.logpdf(x))

    def sf(self, x: ArrayLike) -> Floats:
        """P(G > x)."""
        x = np.asarray(x, np.float64)
        tail = self.kept(np.abs(x)) / 2
        return np.where(x >= 0, tail, 1 - tail)

    def cdf(self, x: ArrayLike) -> Floats:
        """P(G <= x)."""
        return self.sf(-np.asarray(x, np.float64))

    def isf(self, q: ArrayLike) -> Floats:
        """The value exceeded with probability q; ValueError outside [0, 1]."""
        q = shares(q, "q")
        magnitude = self.threshold(2 * np.minimum(q, 1 - q))
        return np.where(q <= 0.5, magnitude, -magnitude)

    def ppf(self, q: ArrayLike) -> Floats:
        """The value that is not exceeded with probability q; ValueError outside [0, 1]."""
        return -self.isf(q)

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> Floats:
        """Random values by inversion."""
        return self.isf(rng.random(size))


def magnitudes(values: ArrayLike) -> Floats:
    """Convert magnitudes to float64; those below 0, which every element exceeds, become 0."""
    return np.maximum(np.asarray(values, np.float64), 0.0)


def shares(values: ArrayLike, name: str = "ratio") -> Floats:
    """Convert shares of elements to float64.

    Raises:
        ValueError: a share is outside [0, 1], or NaN.
    """
    ratios = np.asarray(values, np.float64)
    wrong = ratios[~((ratios >= 0) & (ratios <= 1))]
    if wrong.size:
        raise ValueError(f"{name} must lie in [0, 1], got {float(wrong.flat[0])!r}")
    return ratios


def require(condition: bool, family: type[Family], fact: str) -> None:
    """Raise FitError, naming the family and the fact, unless the condition holds."""
    if not condition:
        raise FitError(f"cannot fit {family.name}: {fact}")
