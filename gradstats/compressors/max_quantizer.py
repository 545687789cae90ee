"""Best levels for a distribution: the quantiser of Max and Lloyd, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from scipy.special import gammainc, gammaincc, gammaincinv, gammaln

Floats = NDArray[np.float64]
ITERATIONS, PRECISE = 50, 1e-9  # the next step would be of the order of the square
HALVINGS = 20


@cache
def levels(law: str, shape: float, bits: int, m: float = 0.0) -> Floats:
    r"""Positive levels of the best symmetric quantiser of a distribution, `[2^(bits-1)]`.

    The distribution has the scale 1.

    A level is :math:`\int x^{M+1} f / \int x^M f` over its cell, and cells meet halfway. Newton's
    method on the logarithms of the levels, from quantiles of :math:`(x^M f)^{1/3}`.

    Args:
        law: "gennorm" or "dweibull".
        shape: of the distribution.
        bits: for 2^bits levels.
        m: M.

    Raises:
        ArithmeticError: Newton's method did not converge.

    References:
        Panter and Dite, "Quantization distortion in pulse-count modulation", 1951.

    Example:
        >>> (levels("gennorm", 2.0, 2) * 2**0.5).round(4).tolist()  # standard normal
        [0.4528, 1.5104]
    """
    weight = Weight(shape, GAMMA_SHAPES[law](shape, m))
    logs = np.log(weight.panter_dite(1 << (bits - 1)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # of steps that are cut
        for _ in range(ITERATIONS):
            step = weight.newton_step(logs)
            logs = weight.rising(logs, step)
            if np.abs(step).max() < PRECISE:
                return np.exp(logs)
    raise ArithmeticError(
        f"cannot place 2^{bits} levels of {law} of shape {shape} and M = {m}: "
        f"{ITERATIONS} steps of Newton's method end with one of {np.abs(step).max():.1e}"
    )


# x^M f is a generalized gamma density, x^shape ~ Gamma(a), with a of shape and M
GAMMA_SHAPES: dict[str, Callable[[float, float], float]] = {
    "gennorm": lambda shape, m: (m + 1) / shape,
    "dweibull": lambda shape, m: m / shape + 1,
}


@dataclass(frozen=True)
class Weight:
    """Weight of an error at x > 0: the generalized gamma density, x^c ~ Gamma(a).

    Attributes:
        c: the power of x.
        a: shape of the gamma distribution.
    """

    c: float
    a: float

    def panter_dite(self, n: int) -> Floats:
        """The n levels of a fine quantiser: even quantiles of the cube root of the density."""
        a = (self.c * self.a + 2) / (3 * self.c)
        return np.asarray((3 * gammaincinv(a, (np.arange(n) + 0.5) / n)) ** (1 / self.c))

    def density(self, x: Floats) -> Floats:
        """At x, `[n]`."""
        power = (self.c * self.a - 1) * np.log(x) - x**self.c
        return np.asarray(self.c * np.exp(power - gammaln(self.a)))

    def newton_step(self, logs: Floats) -> Floats:
        r"""The step to the root of log(mean of a cell) - log(its level); of log levels, `[n]`.

        A cell's mean moves with its edges e by :math:`\pm f(e) (e - mean) / mass`, and an edge
        with the two levels beside it: the equations are tridiagonal.
        """
        level = np.exp(logs)
        edge = (level[1:] + level[:-1]) / 2
        power = np.concatenate([[0.0], edge**self.c, [np.inf]])
        mass = _between(self.a, power)
        scale = np.exp(gammaln(self.a + 1 / self.c) - gammaln(self.a))
        mean = scale * _between(self.a + 1 / self.c, power) / mass
        density = self.density(edge)
        below = density * (edge - mean[:-1]) / (mass * mean)[:-1] / 2
        above = density * (mean[1:] - edge) / (mass * mean)[1:] / 2
        bands = np.zeros((3, len(level)))
        bands[0, 1:] = -below * level[1:]
        bands[1] = 1 - np.append(below * level[:-1], 0) - np.insert(above * level[1:], 0, 0)
        bands[2, :-1] = -above * level[:-1]
        return np.asarray(solve_banded((1, 1), bands, np.log(mean) - logs, check_finite=False))

    def rising(self, logs: Floats, step: Floats) -> Floats:
        """The step, or a half, a quarter … of it: the first after which levels rise."""
        for halvings in range(HALVINGS):
            moved: Floats = logs + step * 0.5**halvings
            if (np.diff(moved) > 0).all():
                return moved
        return logs


def _between(a: float, edges: Floats) -> Floats:
    """P(edges[i] < U < edges[i+1]) of U ~ Gamma(a): the smaller tails are subtracted."""
    below, above = gammainc(a, edges), gammaincc(a, edges)
    between: Floats = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))
    return between
