"""Random elements of a Summary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradstats.summary import Summary


def subsample(
    summary: Summary, size: int, rng: np.random.Generator, *, signed: bool = False
) -> NDArray[np.float64]:
    """Draw finite non-zero elements without replacement, uniform inside their bin.

    Args:
        summary: of the gradient.
        size: number of elements, at most all.
        rng: the generator.
        signed: with their signs; default: magnitudes.

    Returns:
        The elements or magnitudes, `[size]`.
    """
    ranks = rng.choice(summary.nonzero, size, replace=False)
    ends = summary.counts.cumsum()
    bins = np.searchsorted(ends, ranks, side="right")
    low, high = (edge[bins] for edge in summary.edges)
    magnitudes = np.asarray(low + (high - low) * rng.random(size))
    if not signed:
        return magnitudes
    inside = ranks - (ends - summary.counts)[bins]
    return np.where(inside < summary.positive[bins], magnitudes, -magnitudes)
