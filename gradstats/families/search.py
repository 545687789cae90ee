"""Means and searches in logarithms, in which no magnitude overflows or underflows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Floats = NDArray[np.float64]
LONGEST = 4096.0  # nats: float64 spans 1,455 of them


def log_power_mean(logs: Floats, weights: Floats, power: float = 1.0) -> float:
    r"""Return ln of the power mean, :math:`\ln(\overline{x^p})^{1/p}`.

    Args:
        logs: ln x, `[m]`.
        weights: of each x, `[m]`, with sum 1.
        power: p > 0.

    Example:
        >>> round(log_power_mean(np.log([3.0, 4.0]), np.array([0.5, 0.5]), 2.0), 6)
        1.262864
    """
    top = float(logs.max())
    return top + math.log(float(weights @ np.exp(power * (logs - top)))) / power


def softplus(x: Floats) -> Floats:
    """Ln(1 + e^x)."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def falling_root(
    gap: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> float:
    """Find the root of a falling function, by Newton's method inside a bracket that shrinks.

    Args:
        gap: the function and its slope.
        low: an argument at which it is not negative.
        high: an argument at which it is not positive.
        start: any guess.
    """
    at, last = min(max(start, low), high), math.inf
    while high > low:
        value, slope = gap(at)
        low, high = (at, high) if value > 0 else (low, at)
        step = -value / slope if slope < 0 else math.inf
        # bisection where Newton's step leaves the bracket or does not halve
        newton = low < at + step < high and abs(step) <= last / 2
        step = step if newton else (low + high) / 2 - at
        at, last = at + step, abs(step)
        # the error after Newton's step is its square; beside a pole its steps are tiny too
        near = newton and last <= 1e-9 and abs(value) < 0.5
        if near or high - low <= 1e-14 * max(1.0, abs(at)):
            break
    return at


def peak(value: Callable[[float], float], start: float) -> float:
    """Maximise a function with one peak, however far from `start` the peak is.

    The bracket grows until the peak is inside.

    Args:
        value: the function; -inf is allowed, to the left of some point.
        start: any guess.

    Raises:
        ValueError: the function still rises, or is still -inf, 4,096 from the start.
    """
    step, middle = 1.0, start
    while not math.isfinite(value(middle)) and step < LONGEST:
        middle, step = middle + step, 2 * step
    ends = [middle, middle]
    for i, sign in enumerate((-1.0, 1.0)):
        step, ends[i] = 1.0, middle + sign
        while value(ends[i]) >= value(middle) and step < LONGEST:
            ends[1 - i], middle = middle, ends[i]
            step *= 2
            ends[i] = middle + sign * step
        if step >= LONGEST:
            raise ValueError(f"cannot maximise: the function still rises {LONGEST:g} from {start}")
    optimum = optimize.minimize_scalar(
        lambda x: min(-value(x), 1e200), bounds=ends, method="bounded", options={"xatol": 1e-10}
    )
    return max(float(optimum.x), middle, key=value)
