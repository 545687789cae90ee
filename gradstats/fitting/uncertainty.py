"""Standard errors of the parameters of a fit, as if elements were independent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradstats.families import Family
from gradstats.fitting.goodness import log_likelihood
from gradstats.summary import Summary

Floats = NDArray[np.float64]
STEP = 1e-3  # of the logarithm of what is positive, and of a signed shape relative to 1 + |shape|


def standard_errors(law: Family, summary: Summary) -> dict[str, float]:
    r"""Standard errors of the maximum-likelihood parameters, as if elements were independent.

    .. math:: \mathrm{cov}(\hat\theta) = I(\hat\theta)^{-1}, \qquad
              I_{ij} = -n\,\frac{\partial^2\,\overline{\ln f}}{\partial\theta_i\,\partial\theta_j}

    the observed information, by central differences of the binned log-likelihood in the
    logarithms of the shape and the scale (in the shape itself where it may be negative). Elements
    of a gradient are not independent, and every distribution is a little wrong: the spread
    between steps is the honest uncertainty.

    Args:
        law: fitted by "mle" to `summary`.
        summary: of the gradient.

    Returns:
        By parameter, in its unit; NaN for a parameter at a bound of its search, and for all if the
        likelihood has no clear maximum.

    References:
        Efron and Hinkley, "Assessing the accuracy of the maximum likelihood estimator: observed
        versus expected Fisher information", 1978.
    """
    names = [name for name in law.parameters if name not in law.at_bound]
    unknown = dict.fromkeys(law.parameters, math.nan)
    information = -summary.nonzero * _hessian(law, summary, names)
    if not np.isfinite(information).all() or np.linalg.eigvalsh(information).min() <= 0:
        return unknown
    variances = np.diag(np.linalg.inv(information))
    units = {name: law.parameters[name] for name in law.positive if name in law.parameters}
    errors = zip(names, np.sqrt(variances), strict=True)
    return unknown | {name: float(error) * units.get(name, 1.0) for name, error in errors}


def _hessian(law: Family, summary: Summary, names: list[str]) -> Floats:
    """Second derivatives of the mean ln f, in the logarithm of what is positive: `[p, p]`."""
    signed = [name not in law.positive for name in names]
    steps = [
        STEP * (1 + abs(law.parameters[n]) if free else 1)
        for n, free in zip(names, signed, strict=True)
    ]

    def at(*moves: float) -> float:
        moved = dict(law.parameters)
        for name, step, move, free in zip(names, steps, moves, signed, strict=True):
            change = move * step
            moved[name] = moved[name] + change if free else moved[name] * math.exp(change)
        return log_likelihood(replace(law, **moved), summary)  # type: ignore[type-var]

    if len(names) == 1:
        return np.array([[at(1) - 2 * at(0) + at(-1)]]) / steps[0] ** 2
    one, two = steps
    middle = at(0, 0)
    mixed = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * one * two)
    return np.array(
        [
            [(at(1, 0) - 2 * middle + at(-1, 0)) / one**2, mixed],
            [mixed, (at(0, 1) - 2 * middle + at(0, -1)) / two**2],
        ]
    )
