"""The laws that every family obeys; public as `gradstats.testing.family_checks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradstats.families import Family, FitError
from gradstats.testing.comparing import Evidence, at_most, equals, everywhere, near, raises, rises
from gradstats.testing.laws import Check, Facts, attempted, broken, run_all

Floats = NDArray[np.float64]

RATIOS = np.concatenate(
    [1 - np.logspace(-6, -1, 6), np.linspace(0.8, 0.2, 7), np.logspace(-1, -8)]
)
MOST_SEEN = 100.0  # tail index above which a power law's far tail cannot be told from others
DEEPEST = -1e7  # ln kept below which differences of logarithms have too few digits left
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
CLOSE = 1e-9  # of a value: digits that every function must have
# of a probability: scipy takes many tails as 1 - cdf, which has the digits of 1, not its own
ROUNDED = 16 * float(np.finfo(np.float64).eps)
# of the scale: scipy searches for quantiles to 1e-14, so that a median need not be exactly 0
SEARCHED = 1e-13


def family_checks(distribution: Family) -> Iterator[tuple[str, Check]]:
    """One check per law that `Family` promises.

    The functions of a distribution agree with each other and with `scipy()`, to 1e-9 of their
    value down to a tail of 1e-8, and with each other also where the tail probability underflows;
    its estimators recover it from its own quantiles. Where the right value is 0 or has few digits
    of its own, the tolerance is absolute: 4e-15 of a probability, 1e-13 of the scale for a
    quantile (also as much as 4e-15 of probability moves it), 1e-9 nats of a logarithm.

    Args:
        distribution: An instance with ordinary parameters: moderate scale, finite fourth moment
            (or an estimator may legitimately miss it), regular likelihood.

    Yields:
        (id, check): the name of a law, and a function that raises AssertionError with the facts
        that do not hold: the function, the point, the value got and the value expected.
        `compressor_checks` shows how a test marks one that is known to fail.

    Example:
        >>> from gradstats.families import Laplace
        >>> [name for name, _ in family_checks(Laplace(scale=2.0))][:3]
        ['value', 'tail', 'scipy']
    """
    if not isinstance(distribution, Family):
        raise TypeError(
            "distribution must be an instance of a subclass of gradstats.families.Family, "
            f"got {distribution!r}"
        )
    for facts in LAWS:
        yield facts.__name__.strip("_"), partial(_hold, facts, distribution)


def check_family(distribution: Family) -> None:
    """Run all checks of `family_checks`, also after a law that is broken.

    Args:
        distribution: See `family_checks`.

    Raises:
        AssertionError: One line per broken law, with the facts that do not hold: the function, the
            point, the value got and the value expected.

    Example:
        >>> from gradstats.families import Laplace
        >>> check_family(Laplace(scale=2.0))
    """
    run_all(family_checks(distribution))


def _hold(facts: Callable[[Family], Facts], distribution: Family) -> None:
    listed = "; ".join(dict.fromkeys(broken(facts(distribution))))
    if listed:
        name = facts.__name__.strip("_")
        raise AssertionError(f"{distribution!r} must obey the law {name}: {listed}")


def _value(distribution: Family) -> Facts:
    kind = type(distribution)
    yield "a family is a dataclass", is_dataclass(distribution)
    for name in ("name", "methods"):
        yield f"the class has {name}", bool(getattr(kind, name, None))
    scale = distribution.parameters.get("scale", math.nan)
    yield "it has a positive scale", Evidence(scale > 0, f"got {scale!r}")
    yield "it is a value: equal to its copy", _moved(distribution) == distribution
    frozen = partial(setattr, distribution, "scale", scale)
    yield "its parameters are frozen", raises(FrozenInstanceError, frozen)


def _tail(distribution: Family) -> Facts:
    magnitudes, scale = distribution.threshold(RATIOS), distribution.parameters["scale"]
    yield "thresholds rise as the ratio falls", rises(magnitudes, RATIOS)
    nearest = distribution.kept(np.abs(distribution.threshold(1.0)))
    yield "nothing but zeros is below threshold(1): kept", near(nearest, 1.0, 1.0, ROUNDED)
    yield "kept(0) = 1", near(distribution.kept(0.0), 1.0, 0.0, ROUNDED)
    kept = distribution.kept(magnitudes)
    yield "kept(threshold(ratio)) = ratio", near(kept, RATIOS, RATIOS, CLOSE * RATIOS)
    exp = np.exp(distribution.log_kept(magnitudes))
    yield "kept = exp(log_kept)", near(kept, exp, magnitudes, CLOSE * exp)
    doubled = _moved(distribution, scale=2 * scale).threshold(RATIOS)
    within = CLOSE * np.abs(2 * magnitudes) + SEARCHED * scale
    yield (
        "threshold(ratio) is proportional to the scale",
        near(doubled, 2 * magnitudes, RATIOS, within),
    )


def _scipy(distribution: Family) -> Facts:
    oracle, x = distribution.scipy(), distribution.threshold(RATIOS)
    right = 2 * oracle.sf(x)
    yield "kept = 2 scipy().sf", near(distribution.kept(x), right, x, CLOSE * right + ROUNDED)
    for name in ("pdf", "logpdf", "sf", "cdf"):
        yield from attempted(_values(distribution, oracle, name, np.concatenate([x, -x])))
    for name in ("isf", "ppf"):
        yield from attempted(_quantiles(distribution, oracle, name))


def _values(distribution: Family, oracle: Any, name: str, x: Floats) -> Facts:
    right = getattr(oracle, name)(x)
    least = {"pdf": 0.0, "logpdf": CLOSE}.get(name, ROUNDED)
    within = CLOSE * np.abs(right) + least
    yield f"{name} = scipy().{name}", near(getattr(distribution, name)(x), right, x, within)


def _quantiles(distribution: Family, oracle: Any, name: str) -> Facts:
    ours, theirs = getattr(distribution, name), getattr(oracle, name)
    right = theirs(RATIOS)
    moved = np.abs(theirs(RATIOS + ROUNDED) - theirs(RATIOS - ROUNDED))
    within = CLOSE * np.abs(right) + SEARCHED * distribution.parameters["scale"] + moved
    yield f"{name} = scipy().{name}", near(ours(RATIOS), right, RATIOS, within)
    ends, right = np.array([0.0, 1.0]), theirs([0.0, 1.0])
    within = np.where(np.isfinite(right), CLOSE * np.abs(right), 0.0)
    yield f"{name} = scipy().{name} at 0 and 1", near(ours(ends), right, ends, within)


def _contract(distribution: Family) -> Facts:
    given = distribution.parameters
    yield (
        "its parameters are scale, or shape and scale",
        Evidence(set(given) <= {"shape", "scale"}, f"got {', '.join(given)}"),
    )
    known = Evidence(set(distribution.bounds) <= set(given), f"got {distribution.bounds!r}")
    yield "bounds are of its parameters", known
    for name, (low, high) in distribution.bounds.items():
        inside = Evidence(low <= given[name] <= high, f"got {name} {given[name]!r}")
        yield f"its parameters lie in the bounds of its search, [{low}, {high}]", inside
    for name, ends in distribution.bounds.items():
        for end in filter(np.isfinite, ends):
            if end <= 0 and name in distribution.positive:
                continue
            at_bound = _moved(distribution, **{name: end}).at_bound
            fact = f"a parameter at the end of its search is at_bound, {name} at {end}"
            yield fact, Evidence(name in at_bound, f"got {at_bound!r}")
    yield from attempted(_far_tail(distribution))


def _far_tail(distribution: Family) -> Facts:
    far = float(distribution.threshold(1e-8)) * np.array([1e12, 1e13])
    log_kept, index = distribution.log_kept(far), distribution.tail_index
    slope = float(-np.diff(log_kept)[0] / np.log(10)) if log_kept[0] > -1e4 else np.inf
    agrees = slope > 20 if index > MOST_SEEN else abs(slope - index) < 1e-3 * index
    values = f"got {index!r}, log_kept falls by {slope!r} per ln |g| at {far[0]!r}"
    yield "tail_index is the power of its far tail", Evidence(index > 0 and agrees, values)


def _symmetry(distribution: Family) -> Facts:
    x, scale = distribution.threshold(RATIOS), distribution.parameters["scale"]
    logs = distribution.logpdf(x)
    within = ROUNDED * (1 + np.abs(logs))
    yield "logpdf(-x) = logpdf(x)", near(distribution.logpdf(-x), logs, x, within)
    pdf = distribution.pdf(x)
    yield "pdf(-x) = pdf(x)", near(distribution.pdf(-x), pdf, x, within * pdf)
    sf = distribution.sf(x)
    yield "cdf(-x) = sf(x)", near(distribution.cdf(-x), sf, x, ROUNDED * sf)
    isf = distribution.isf(RATIOS)
    within = ROUNDED * (np.abs(isf) + scale)
    yield "ppf(q) = -isf(q)", near(distribution.ppf(RATIOS), -isf, RATIOS, within)


def _density(distribution: Family) -> Facts:
    """Ln kept falls by the hazard 2f/kept, integrated in logarithms so that no tail underflows.

    With kept(0) = 1 this makes the density integrate to 1.
    """
    body = distribution.threshold(RATIOS)
    magnitudes = np.concatenate([body, body[-1] * np.geomspace(2, 256, 8)])
    log_kept = distribution.log_kept(magnitudes)
    yield "log_kept is not NaN", everywhere(~np.isnan(log_kept), log_kept, magnitudes)
    beyond = magnitudes[np.isneginf(log_kept)]
    density = distribution.logpdf(beyond)
    yield (
        "the density is 0 where nothing is kept: logpdf",
        everywhere(np.isneginf(density), density, beyond),
    )
    seen = log_kept > DEEPEST
    inside = np.log(magnitudes[seen])
    middle, half = (inside[1:] + inside[:-1]) / 2, np.diff(inside) / 2
    x = np.exp(middle[:, None] + half[:, None] * NODES)
    hazard = 2 * np.exp(distribution.logpdf(x) - distribution.log_kept(x)) * x
    fall, right = (hazard * WEIGHTS).sum(axis=1) * half, -np.diff(log_kept[seen])
    yield (
        "the density is minus half the slope of kept: the fall of log_kept from the hazard",
        near(fall, right, np.exp(middle), 1e-6 * np.abs(right)),
    )


def _estimators(distribution: Family) -> Facts:
    quantiles = distribution.isf((np.arange(100_000) + 0.5) / 100_000)
    for method in type(distribution).methods:
        yield from attempted(_recovered(distribution, method, quantiles))
        for nothing in (torch.zeros(3), torch.zeros(0), torch.full((2,), torch.nan)):
            fit = partial(type(distribution).fit, nothing, method=method)
            yield f"{method} raises FitError without a magnitude", raises(FitError, fit)


def _recovered(distribution: Family, method: str, quantiles: Floats) -> Facts:
    ratios = np.array([0.1, 0.01])
    fitted = type(distribution).fit(quantiles, method=method)
    kept = distribution.kept(fitted.threshold(ratios))
    yield (
        f"{method} recovers the distribution from its quantiles, got {fitted!r}: the ratio kept",
        near(kept, ratios, ratios, 0.05 * ratios),
    )
    scaled = type(distribution).fit(quantiles * 4, method=method).threshold(ratios)
    right = 4 * fitted.threshold(ratios)
    yield (
        f"{method} follows a change of unit: the threshold",
        near(scaled, right, ratios, 1e-4 * right),
    )


def _randomness(distribution: Family) -> Facts:
    draws, again = (distribution.rvs((4, 500), np.random.default_rng(0)) for _ in range(2))
    fact = "rvs has the size asked for and depends on the generator alone"
    yield f"{fact}: the size", equals(draws.shape, (4, 500))
    yield f"{fact}: a second draw", near(again, draws, 0.0, 0.0)
    uniform = np.sort(distribution.cdf(draws.ravel()))
    distance = np.abs(uniform - (np.arange(2000) + 0.5) / 2000).max()
    # Kolmogorov-Smirnov, p about 1e-4
    yield "rvs follows cdf: the largest difference", at_most(float(distance), 0.05)


def _arguments(distribution: Family) -> Facts:
    """What no distribution has is refused, and every element exceeds a negative magnitude."""
    yield "kept(-1) = 1", near(distribution.kept(-1.0), 1.0, -1.0, ROUNDED)
    missing = float(distribution.kept(math.nan))
    yield "kept(NaN) is NaN", Evidence(math.isnan(missing), f"got {missing!r}")
    for ratio in (-0.5, 1.5, math.nan):
        for name in ("threshold", "isf", "ppf"):
            refused = raises(ValueError, partial(getattr(distribution, name), ratio))
            yield f"{name}({ratio}) raises ValueError", refused
    for scale in (0.0, -1.0, math.nan, math.inf):
        refused = raises(ValueError, partial(_moved, distribution, scale=scale))
        yield f"scale {scale} raises ValueError", refused


def _scales(distribution: Family) -> Facts:
    """The likeliest scale of its own quantiles is its own."""
    magnitudes = np.abs(distribution.isf((np.arange(20_000) + 0.5) / 20_000))
    weights = np.full(len(magnitudes), 1 / len(magnitudes))
    log = distribution.log_scale(np.log(np.maximum(magnitudes, 1e-300)), weights)
    own = distribution.parameters["scale"]
    close = abs(math.exp(log) / own - 1) < 0.05
    yield "log_scale finds the scale", Evidence(close, f"got {math.exp(log)!r}, expected {own!r}")


LAWS: tuple[Callable[[Family], Facts], ...] = (
    _value,
    _tail,
    _scipy,
    _contract,
    _symmetry,
    _density,
    _estimators,
    _randomness,
    _arguments,
    _scales,
)


def _moved(distribution: Family, **parameters: float) -> Family:
    return replace(distribution, **parameters)  # type: ignore[type-var]
