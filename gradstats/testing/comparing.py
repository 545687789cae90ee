"""Comparisons that keep their evidence: which values were got, and which were expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Whether a fact holds, and the values that show why not.

    Attributes:
        holds: whether the fact holds.
        values: the point, the value got and the value expected; "" if the fact holds.
    """

    holds: bool
    values: str = ""

    def __bool__(self) -> bool:
        return self.holds


HOLDS = Evidence(True)


def equals(actual: object, expected: object) -> Evidence:
    """Equality of two plain values."""
    return HOLDS if actual == expected else _against(actual, expected)


def at_most(value: float, limit: float) -> Evidence:
    """Whether a number is at most a limit; NaN is not."""
    return HOLDS if value <= limit else Evidence(False, f"got {value!r}, at most {limit!r}")


def near(actual: ArrayLike, expected: ArrayLike, at: ArrayLike, within: ArrayLike) -> Evidence:
    """Equality of numbers within absolute tolerances; infinities equal themselves.

    Args:
        actual: the numbers that were got.
        expected: the right numbers.
        at: the points at which they were computed.
        within: the tolerances, in the unit of the numbers.
    """
    arrays = (np.asarray(each, np.float64) for each in (actual, expected, at, within))
    rows = np.broadcast_arrays(*arrays)
    got, right, points, tolerances = (each.ravel() for each in rows)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        excess = np.where(got == right, 0.0, np.abs(got - right) / tolerances)
    wrong = ~(excess <= 1)
    if not wrong.any():
        return HOLDS
    worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    share = f" ({wrong.sum()} of {wrong.size} points)" if wrong.size > 1 else ""
    values = _against(float(got[worst]), float(right[worst])).values
    return Evidence(False, f"at {float(points[worst])!r}: {values}{share}")


def raises(error: type[Exception], call: Callable[[], object]) -> Evidence:
    """Whether a call raises an error of that class."""
    try:
        returned = call()
    except Exception as raised:
        values = f"got {raised!r}, expected {error.__name__}"
        return HOLDS if isinstance(raised, error) else Evidence(False, values)
    return Evidence(False, f"got {returned!r}, expected {error.__name__}")


def rises(values: Floats, at: Floats) -> Evidence:
    """Whether each value is above the one before."""
    rising = np.diff(values) > 0
    if rising.all():
        return HOLDS
    i = int(np.argmin(rising))
    pairs = zip(values[i : i + 2], at[i : i + 2], strict=True)
    return Evidence(False, "got " + ", ".join(f"{float(v)!r} at {float(a)!r}" for v, a in pairs))


def everywhere(holds: NDArray[np.bool_], values: Floats, at: Floats) -> Evidence:
    """Whether a fact holds at all points, or the first at which it does not."""
    if holds.all():
        return HOLDS
    i = int(np.argmin(holds))
    return Evidence(False, f"at {float(at[i])!r}: got {float(values[i])!r}")


def same(actual: Tensor, expected: Tensor) -> Evidence:
    """Equality bit by bit, so that NaN equals itself."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        kinds = (f"{tuple(each.shape)} of {each.dtype}" for each in (actual, expected))
        return _against(*kinds, plain=True)
    if not actual.numel():
        return HOLDS
    pairs = (each.reshape(-1).contiguous().view(torch.uint8) for each in (actual, expected))
    size = actual.element_size()
    differ = torch.ne(*pairs).reshape(-1, size).any(1)
    return _elements(actual, expected, differ)


def equal(actual: Tensor, expected: Tensor) -> Evidence:
    """Equality of numbers: 0 equals -0, and NaN equals itself."""
    alike = (actual == expected) | (actual.isnan() & expected.isnan())
    return _elements(actual, expected, ~alike.reshape(-1))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> Evidence:
    """Equality within a share of the largest expected element."""
    return within(actual, expected, tolerance * expected.abs().max())


def within(actual: Tensor, expected: Tensor, limit: float | Tensor) -> Evidence:
    """Equality within an absolute limit."""
    inside = (actual - expected).abs() <= limit
    return _elements(actual, expected, ~inside.reshape(-1))


def is_finite(values: Tensor) -> Evidence:
    """Whether every element is finite."""
    wrong = ~values.isfinite().reshape(-1)
    if not wrong.any():
        return HOLDS
    first = int(wrong.nonzero()[0])
    got = float(values.reshape(-1)[first])
    return Evidence(False, f"got {got!r} at element {first} ({_share(wrong)})")


def _elements(actual: Tensor, expected: Tensor, wrong: Tensor) -> Evidence:
    if not wrong.any():
        return HOLDS
    first = int(wrong.nonzero()[0])
    got, right = (float(each.reshape(-1)[first]) for each in (actual, expected))
    return Evidence(False, f"at element {first}: {_against(got, right).values} ({_share(wrong)})")


def _share(wrong: Tensor) -> str:
    return f"{int(wrong.sum())} of {wrong.numel()} elements"


def _against(actual: object, expected: object, *, plain: bool = False) -> Evidence:
    got, right = (str(each) if plain else repr(each) for each in (actual, expected))
    return Evidence(False, f"got {got}, expected {right}")
