"""The search that the maximum-likelihood estimators share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from gradstats.families.base import Family, require

Floats = NDArray[np.float64]


def highest(family: type[Family], profile: Callable[[float], float], starts: Floats) -> float:
    """Maximise a profile log-likelihood: scan all starts, then Brent's method about the best.

    The scan makes every start compete, so that a local maximum is not taken for the highest; the
    search then stays between the neighbours of the best start, and at an end of the range it may
    end there.

    Args:
        family: the family to name in an error.
        profile: the log-likelihood per element, with all other parameters at their best.
        starts: rising arguments, from the lowest to the highest that is allowed.

    Raises:
        FitError: the likelihood is not finite at any start.
    """
    values = np.array([profile(float(start)) for start in starts])
    require(bool(np.isfinite(values).any()), family, "the likelihood is finite nowhere")
    best = int(np.nanargmax(np.where(np.isfinite(values), values, -np.inf)))
    bounds = float(starts[max(best - 1, 0)]), float(starts[min(best + 1, len(starts) - 1)])
    peak = optimize.minimize_scalar(
        lambda x: -profile(x), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    ends = (float(peak.x), float(starts[0]), float(starts[-1]), float(starts[best]))
    return max(ends, key=profile)
