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
from gradstats.testing.laws import broken

Floats = NDArray[np.float64]

RATIOS = np.concatenate(
    [1 - np.logspace(-6, -1, 6), np.linspace(0.8, 0.2, 7), np.logspace(-1, -8)]
)
MOST_SEEN = 100.0  # tail index above which a power law's far tail cannot be told from others
DEEPEST = -1e7  # ln kept below which differences of logarithms have too few digits left
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


Facts = Iterator[tuple[str, Any]]
Check = Callable[[], None]


def family_checks(distribution: Family) -> Iterator[tuple[str, Check]]:
    """One check per law that `Family` promises.

    The functions of a distribution agree with each other and with `scipy()`, to 1e-9 of their
    value down to a tail of 1e-8, and with each other also where the tail probability underflows;
    its estimators recover it from its own quantiles.

    Args:
        distribution: An instance with ordinary parameters: moderate scale, finite fourth moment
            (or an estimator may legitimately miss it), regular likelihood.

    Yields:
        (id, check): the name of a law, and a function that raises AssertionError with the facts
        that do not hold. `compressor_checks` shows how a test marks one that is known to fail.

    Example:
        >>> from gradstats.families import Laplace
        >>> [name for name, _ in family_checks(Laplace(scale=2.0))][:3]
        ['value', 'tail', 'scipy']
    """
    for facts in LAWS:
        yield facts.__name__.strip("_"), partial(_hold, facts, distribution)


def check_family(distribution: Family) -> None:
    """Run all checks of `family_checks`, up to the first law that is broken.

    Args:
        distribution: See `family_checks`.

    Raises:
        AssertionError: With the distribution, the law, and the facts that do not hold.

    Example:
        >>> from gradstats.families import Laplace
        >>> check_family(Laplace(scale=2.0))
    """
    for _, check in family_checks(distribution):
        check()


def _hold(facts: Callable[[Family], Facts], distribution: Family) -> None:
    listed = "; ".join(dict.fromkeys(broken(facts(distribution))))
    if listed:
        name = facts.__name__.strip("_")
        raise AssertionError(f"{distribution!r} must obey the law {name}: {listed}")


def _value(distribution: Family) -> Facts:
    yield "a family is a dataclass", is_dataclass(distribution)
    yield "it has a name and methods", bool(type(distribution).name and type(distribution).methods)
    yield "it has a positive scale", distribution.parameters.get("scale", 0) > 0
    yield "it is a value: equal to its copy", _equals_its_copy(distribution)
    yield (
        "its parameters are frozen",
        _raises(FrozenInstanceError, lambda: _set_scale(distribution)),
    )


def _tail(distribution: Family) -> Facts:
    magnitudes = distribution.threshold(RATIOS)
    yield "thresholds rise as the ratio falls", np.all(np.diff(magnitudes) > 0)
    yield "nothing but zeros is below threshold(1) = 0", float(distribution.threshold(1.0)) == 0
    yield "kept(0) = 1", float(distribution.kept(0.0)) == 1
    yield "kept(threshold(ratio)) = ratio", _close(distribution.kept(magnitudes), RATIOS)
    yield (
        "kept = exp(log_kept)",
        _close(distribution.kept(magnitudes), np.exp(distribution.log_kept(magnitudes))),
    )
    doubled = replace(distribution, scale=2 * distribution.parameters["scale"])  # type: ignore[type-var]
    yield (
        "the threshold is proportional to the scale",
        _close(doubled.threshold(RATIOS), 2 * magnitudes),
    )


def _scipy(distribution: Family) -> Facts:
    oracle, x = distribution.scipy(), distribution.threshold(RATIOS)
    yield "kept = 2 scipy().sf", _close(distribution.kept(x), 2 * oracle.sf(x))
    for name in ("pdf", "logpdf", "sf", "cdf"):
        ours, theirs = getattr(distribution, name), getattr(oracle, name)
        for sign in (1, -1):
            yield f"{name} = scipy().{name}", _close(ours(sign * x), theirs(sign * x))
    for name in ("isf", "ppf"):
        ours, theirs = getattr(distribution, name), getattr(oracle, name)
        yield f"{name} = scipy().{name}", _close(ours(RATIOS), theirs(RATIOS))
        yield f"{name} = scipy().{name} at 0 and 1", np.array_equal(ours([0, 1]), theirs([0, 1]))


def _contract(distribution: Family) -> Facts:
    yield (
        "its parameters are scale, or shape and scale",
        set(distribution.parameters) <= {"shape", "scale"},
    )
    yield "bounds are of its parameters", set(distribution.bounds) <= set(distribution.parameters)
    inside = all(
        low <= distribution.parameters[name] <= high
        for name, (low, high) in distribution.bounds.items()
    )
    yield "its parameters lie in the bounds of its search", inside
    for name, ends in distribution.bounds.items():
        for end in filter(np.isfinite, ends):
            if end <= 0 and name in distribution.positive:
                continue
            at_end = replace(distribution, **{name: end})  # type: ignore[type-var]
            yield "a parameter at the end of its search is at_bound", name in at_end.at_bound
    far = float(distribution.threshold(1e-8)) * np.array([1e12, 1e13])
    slope = (
        -np.diff(distribution.log_kept(far))[0] / np.log(10)
        if distribution.log_kept(far)[0] > -1e4
        else np.inf
    )
    index = distribution.tail_index
    agrees = slope > 20 if index > MOST_SEEN else abs(slope - index) < 1e-3 * index
    yield "tail_index is the power of its far tail", index > 0 and agrees


def _symmetry(distribution: Family) -> Facts:
    x = distribution.threshold(RATIOS)
    yield "pdf(-x) = pdf(x)", np.array_equal(distribution.pdf(-x), distribution.pdf(x))
    yield "cdf(-x) = sf(x)", np.array_equal(distribution.cdf(-x), distribution.sf(x))
    yield "ppf(q) = -isf(q)", np.array_equal(distribution.ppf(RATIOS), -distribution.isf(RATIOS))


def _density(distribution: Family) -> Facts:
    """Ln kept falls by the hazard 2f/kept, integrated in logarithms so that no tail underflows.

    With kept(0) = 1 this makes the density integrate to 1.
    """
    body = distribution.threshold(RATIOS)
    magnitudes = np.concatenate([body, body[-1] * np.geomspace(2, 256, 8)])
    log_kept = distribution.log_kept(magnitudes)
    yield "log_kept is not NaN", not np.isnan(log_kept).any()
    beyond = np.isneginf(log_kept)
    yield (
        "the density is 0 where nothing is kept",
        np.all(np.isneginf(distribution.logpdf(magnitudes[beyond]))),
    )
    near = log_kept > DEEPEST
    inside = np.log(magnitudes[near])
    middle, half = (inside[1:] + inside[:-1]) / 2, np.diff(inside) / 2
    x = np.exp(middle[:, None] + half[:, None] * NODES)
    hazard = 2 * np.exp(distribution.logpdf(x) - distribution.log_kept(x)) * x
    fall = (hazard * WEIGHTS).sum(axis=1) * half
    yield (
        "the density is minus half the slope of kept",
        _close(fall, -np.diff(log_kept[near]), 1e-6),
    )


def _estimators(distribution: Family) -> Facts:
    quantiles = distribution.isf((np.arange(100_000) + 0.5) / 100_000)
    ratios = np.array([0.1, 0.01])
    for method in type(distribution).methods:
        fitted = type(distribution).fit(quantiles, method=method)
        kept = distribution.kept(fitted.threshold(ratios))
        yield f"{method} recovers the distribution from its quantiles", _close(kept, ratios, 0.05)
        scaled = type(distribution).fit(quantiles * 4, method=method)
        yield (
            f"{method} follows a change of unit",
            _close(scaled.threshold(ratios), 4 * fitted.threshold(ratios), 1e-4),
        )
        for nothing in (torch.zeros(3), torch.zeros(0), torch.full((2,), torch.nan)):
            yield (
                f"{method} raises FitError without a magnitude",
                _raises(FitError, partial(type(distribution).fit, nothing, method=method)),
            )


def _randomness(distribution: Family) -> Facts:
    draws, again = (distribution.rvs((4, 500), np.random.default_rng(0)) for _ in range(2))
    yield (
        "rvs has the size asked for and depends on the generator alone",
        (draws.shape == (4, 500) and np.array_equal(draws, again)),
    )
    uniform = np.sort(distribution.cdf(draws.ravel()))
    distance = np.abs(uniform - (np.arange(2000) + 0.5) / 2000).max()
    yield "rvs follows cdf", distance < 0.05  # Kolmogorov-Smirnov, p about 1e-4


def _arguments(distribution: Family) -> Facts:
    """What no distribution has is refused, and every element exceeds a negative magnitude."""
    yield "kept(-1) = 1", float(distribution.kept(-1.0)) == 1
    yield "kept(NaN) is NaN", math.isnan(float(distribution.kept(math.nan)))
    for ratio in (-0.5, 1.5, math.nan):
        for name in ("threshold", "isf", "ppf"):
            refused = _raises(ValueError, partial(getattr(distribution, name), ratio))
            yield f"{name}({ratio}) raises ValueError", refused
    for scale in (0.0, -1.0, math.nan, math.inf):
        refused = _raises(ValueError, partial(replace, distribution, scale=scale))  # type: ignore[type-var]
        yield f"scale {scale} raises ValueError", refused


def _scales(distribution: Family) -> Facts:
    """The likeliest scale of its own quantiles is its own."""
    magnitudes = np.abs(distribution.isf((np.arange(20_000) + 0.5) / 20_000))
    weights = np.full(len(magnitudes), 1 / len(magnitudes))
    scale = math.exp(distribution.log_scale(np.log(np.maximum(magnitudes, 1e-300)), weights))
    yield "log_scale finds the scale", abs(scale / distribution.parameters["scale"] - 1) < 0.05


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


def _close(actual: Floats, expected: Floats, tolerance: float = 1e-9) -> bool:
    return np.allclose(actual, expected, rtol=tolerance, atol=0)


def _raises(error: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception as raised:
        return isinstance(raised, error)
    return False


def _equals_its_copy(distribution: Family) -> bool:
    return replace(distribution) == distribution  # type: ignore[type-var]


def _set_scale(distribution: Family) -> None:
    distribution.scale = 1.0  # type: ignore[attr-defined]
