"""The tail index of a symmetric α-stable distribution, as a diagnostic of heavy tails."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from gradstats.summary import Summary

Floats = NDArray[np.float64]

# (α, 5-95 % range over 25-75 % range) of the symmetric distribution, its distribution function
# integrated by Nolan's formula to 1e-12; α = 1 is tan(0.45π), α = 2 is z.95/z.75.
NODES = np.array(
    [
        (0.50, 44.63511824796559),
        (0.55, 31.56556928738227),
        (0.60, 23.612189233819045),
        (0.65, 18.439616580666478),
        (0.70, 14.893766957470119),
        (0.75, 12.35752233808249),
        (0.80, 10.479083372793047),
        (0.85, 9.04701612579975),
        (0.90, 7.928492450667884),
        (0.95, 7.036865886451475),
        (1.00, 6.313751514675043),
        (1.05, 5.718675712974956),
        (1.10, 5.222868895061693),
        (1.20, 4.45085059339561),
        (1.30, 3.886469946542082),
        (1.40, 3.4656247168639913),
        (1.50, 3.1497950847706635),
        (1.60, 2.9140291631609028),
        (1.70, 2.739382232029708),
        (1.80, 2.609913722718774),
        (1.85, 2.55798456130364),
        (1.90, 2.5128182854779264),
        (1.95, 2.473342252852554),
        (2.00, 2.4386636364352383),
    ]
)
_INDEX = PchipInterpolator(np.log(NODES[::-1, 1]), NODES[::-1, 0])


def stable_index(summary: Summary) -> float:
    r"""McCulloch's estimate of α from the quantiles of a gradient taken as symmetric about 0.

    .. math:: \nu_\alpha = \frac{q_{0.95} - q_{0.05}}{q_{0.75} - q_{0.25}}
              = \frac{Q_{|g|}(0.9)}{Q_{|g|}(0.5)}

    α = 2 is the normal distribution, α = 1 Cauchy's. It describes the middle of a distribution,
    from which a stable distribution's tail would follow; a distribution that is not stable may
    have any other tail.

    Args:
        summary: of the gradient; its finite non-zero magnitudes count.

    Returns:
        α in [1/2, 2]: 2 also for what is lighter than normal, 1/2 for what is heavier; NaN without
        a magnitude.

    References:
        McCulloch, "Simple consistent estimators of stable distribution parameters", 1986; Nolan,
        "Numerical calculation of stable densities and distribution functions", 1997.
    """
    if not summary.nonzero:
        return math.nan
    return float(index_of_ratio(summary.quantile(0.1) / summary.quantile(0.5)))


def index_of_ratio(ratio: ArrayLike) -> Floats:
    """α of ratios of the 5-95 % to the 25-75 % range; outside the table, its nearest end.

    Example:
        >>> index_of_ratio([1.0, 2.4386636364352383, 6.313751514675043, 1e6]).tolist()
        [2.0, 2.0, 1.0, 0.5]
    """
    lowest, highest = NODES[-1, 1], NODES[0, 1]
    return np.asarray(_INDEX(np.log(np.clip(np.asarray(ratio, np.float64), lowest, highest))))
