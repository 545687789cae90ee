"""Moments of a sample, for closed-form estimators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of magnitudes, or of their excesses over a threshold, for closed-form estimators.

    Attributes:
        n: sample size; a fraction where a threshold cuts through a bin.
        mean: sample mean, in the unit of the gradient.
        var: unbiased sample variance; NaN when n < 2.
        mean_log: mean of ln x; NaN when not known (excesses over a positive threshold).
        distinct: False when all magnitudes share one bin of the grid, so that no spread can be
            estimated.
    """

    n: float
    mean: float
    var: float
    mean_log: float = float("nan")
    distinct: bool = True


def share_above(low: Floats, high: Floats, threshold: float) -> Floats:
    """Share of each bin that lies above a threshold, if its values are uniform: `[m]`."""
    width = high - low
    cut = (low <= threshold) & (threshold < high)
    inside = np.divide(high - threshold, width, out=np.zeros_like(width), where=cut)
    return np.where(low > threshold, 1.0, np.where(high > threshold, inside, 0.0))


@np.errstate(over="ignore")
def excess_moments(
    counts: NDArray[np.integer], low: Floats, high: Floats, threshold: float
) -> Moments:
    """Moments of x - threshold over the x > threshold of bins whose values are uniform.

    Args:
        counts: elements in each bin, `[m]`.
        low: smallest magnitude of each bin, `[m]`.
        high: largest magnitude of each bin, `[m]`.
        threshold: in the unit of the edges.
    """
    n = counts * share_above(low, high, threshold)
    above = n > 0
    n, low, high = n[above], np.maximum(low[above], threshold), high[above]
    size = float(n.sum())
    if size == 0:
        return Moments(0, float("nan"), float("nan"))
    x = (low + high) / 2 - threshold
    mean = float(n @ x) / size
    squares = float(n @ ((x - mean) ** 2 + (high - low) ** 2 / 12))
    var = squares / (size - 1) if size > 1 else float("nan")
    return Moments(size, mean, var, distinct=len(n) > 1)
