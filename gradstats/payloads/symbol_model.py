"""The scale at which a float format loses least of a generalized normal distribution."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gamma, gammainc

from gradstats.payloads.alphabet import Alphabet

Floats = NDArray[np.float64]
GRID = 64  # shapes are multiples of 1/64
NARROWEST, WIDEST = 0.25, 4.0
SCALES = np.geomspace(1e-5, 1e4, 400)
FLAT = 1.02  # scales whose error is within 2 % of the least are as good


def on_grid(shape: float) -> float:
    """The nearest shape for which scales are known: a multiple of 1/64 in [0.25, 4].

    Example:
        >>> on_grid(0.5004), on_grid(17.0)
        (0.5, 4.0)
    """
    return float(np.clip(round(shape * GRID) / GRID, NARROWEST, WIDEST))


@cache
def optimal_scale(shape: float, alphabet: Alphabet) -> float:
    r"""The s that minimises E(Q(sX)/s - X)² for X of GenNorm(shape, 1).

    The error has several minima: a grid finds the lowest, Brent's method the bottom. Where it is
    flat over decades, as for 8 bits, the scale nearest to 1 is taken.

    Args:
        shape: β, from `on_grid`.
        alphabet: of the levels, to the nearest of which Q rounds.
    """
    errors = relative_errors(shape, SCALES, alphabet)
    if (errors < FLAT * errors.min()).sum() > len(SCALES) / 9:  # a decade
        good = SCALES[errors < FLAT * errors.min()]
        return float(good[np.abs(np.log(good)).argmin()])
    lowest = int(errors.argmin())
    bounds = np.log(SCALES[[max(lowest - 1, 0), min(lowest + 1, len(SCALES) - 1)]])
    optimum = minimize_scalar(
        lambda log: relative_error(shape, float(np.exp(log)), alphabet),
        bounds=tuple(bounds),
        method="bounded",
    )
    return float(np.exp(optimum.x))


def relative_error(shape: float, scale: float, alphabet: Alphabet) -> float:
    """E(Q(sX)/s - X)² / E X², see `relative_errors`."""
    return float(relative_errors(shape, np.array([scale]), alphabet)[0])


def relative_errors(shape: float, scales: Floats, alphabet: Alphabet) -> Floats:
    r"""E(Q(sX)/s - X)² / E X² of every scale, in closed form: `[s]`.

    In a cell with level c the error is :math:`c^2 M_0 - 2 c M_1 + M_2`, with
    :math:`\int_0^x t^k f = \frac{\Gamma((k+1)/\beta)}{2 \Gamma(1/\beta)} P((k+1)/\beta, x^\beta)`.
    """
    exact = alphabet.exact_levels()
    levels = exact[exact >= 0] / scales[:, np.newaxis]
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    edges = np.pad(middles, ((0, 0), (1, 1)), constant_values=((0, 0), (0.0, np.inf)))
    m0, m1, m2 = (np.diff(_moment(k, edges, shape)) for k in range(3))
    error = (levels**2 * m0 - 2 * levels * m1 + m2).sum(axis=1)
    return np.asarray(error / _moment(2, np.array(np.inf), shape))


def symbol_probabilities(shape: float, scale: float, alphabet: Alphabet) -> Floats:
    """P(Q(sX) = level) of every level, `[L]`."""
    levels = alphabet.exact_levels()
    edges = (levels[1:] + levels[:-1]) / 2 / scale
    cdf = 0.5 + np.sign(edges) * _moment(0, np.abs(edges), shape)
    return np.diff(np.concatenate([[0.0], cdf, [1.0]]))


def _moment(k: int, x: Floats, shape: float) -> Floats:
    """The k-th partial moment from 0 to x of GenNorm(shape, 1)."""
    whole = gamma((k + 1) / shape) / gamma(1 / shape) / 2
    return np.asarray(whole * gammainc((k + 1) / shape, x**shape))
