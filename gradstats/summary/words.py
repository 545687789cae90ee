"""A Summary in words: its `repr`, and its spread as errors name it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gradstats.summary.summary import Summary


def in_short(summary: Summary) -> str:
    """Describe a Summary in one line: size, magnitudes, zeros, and what is not finite."""
    finite, sums = max(1, summary.n - summary.nonfinite), summary.safe_sums()
    mean, square = sums.total / finite, sums.total_sq / finite
    std = math.sqrt(max(square - mean * mean, 0.0)) * sums.unit
    absolute = sums.total_abs / finite * sums.unit
    zeros = summary.zeros / max(1, summary.n)
    values = f"mean |g| {absolute:.3g}, std {std:.3g}, max {summary.max_abs:.3g}"
    rest = f"{zeros:.3g} of them zero, {summary.nonfinite:,} NaN or inf"
    return f"<Summary of {summary.n:,} {summary.dtype} elements: {values}, {rest}>"


def spread_in_words(summary: Summary) -> str:
    """Count distinct magnitudes: values, or bins if values share bins."""
    if np.all(summary.points | (summary.counts == 1)):
        return f"{summary.distinct} distinct magnitudes"
    bins = f"{summary.distinct} bins of the {summary.dtype} grid"
    return f"{summary.nonzero} magnitudes in {bins}"
