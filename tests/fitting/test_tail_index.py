"""The stable index against closed forms, scipy's stable laws, and draws."""

import math
import warnings

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from gradstats.fitting.tail_index import NODES, index_of_ratio, stable_index
from gradstats.summary import summarize


def test_it_is_exact_for_the_normal_law_and_for_cauchys():
    normal = stats.norm.ppf(0.95) / stats.norm.ppf(0.75)
    assert index_of_ratio([normal, math.tan(0.45 * math.pi)]) == pytest.approx([2, 1], abs=1e-12)
    for law, index in ((stats.norm, 2.0), (stats.cauchy, 1.0)):
        quantiles = law.ppf((np.arange(200_000) + 0.5) / 200_000)
        assert stable_index(summarize(quantiles)) == pytest.approx(index, abs=1e-3)


def distribution(x, alpha):
    """By the inverse Fourier integral of exp(-t^α): another way than that of the table."""
    end = 40.0 ** (1 / alpha)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", integrate.IntegrationWarning)
        value = integrate.quad(
            lambda t: np.sin(x * t) / t * np.exp(-(t**alpha)), 0, end, limit=2000, epsabs=1e-10
        )[0]
    return 0.5 + value / math.pi


@pytest.mark.parametrize("alpha", [1.1, 1.15, 1.25, 1.45, 1.5, 1.65, 1.75, 1.9, 1.97])
def test_between_the_nodes_the_index_is_that_of_the_law(alpha):
    upper, middle = (
        optimize.brentq(lambda x, p=p: distribution(x, alpha) - p, 0.1, 60) for p in (0.95, 0.75)
    )
    assert float(index_of_ratio(upper / middle)) == pytest.approx(alpha, abs=1e-3)


def test_the_index_falls_as_the_ratio_rises():
    ratios = np.geomspace(1, 100, 500)
    assert np.all(np.diff(index_of_ratio(ratios)) <= 0)
    assert index_of_ratio(NODES[:, 1]) == pytest.approx(NODES[:, 0], abs=1e-12)


@pytest.mark.parametrize("alpha", [0.6, 0.8, 1.4, 1.8])
def test_draws_of_a_stable_law(alpha):
    """By the method of Chambers, Mallows and Stuck."""
    rng = np.random.default_rng(0)
    angle, size = rng.uniform(-math.pi / 2, math.pi / 2, 200_000), rng.exponential(size=200_000)
    draws = np.sin(alpha * angle) / np.cos(angle) ** (1 / alpha)
    draws *= (np.cos((1 - alpha) * angle) / size) ** ((1 - alpha) / alpha)
    assert stable_index(summarize(draws)) == pytest.approx(alpha, abs=0.02)


def test_outside_its_range_it_is_at_the_end():
    assert stable_index(summarize(np.linspace(-1, 1, 1001))) == 2.0
    assert stable_index(summarize(np.float32([1e-6] * 60 + [1e6] * 40))) == 0.5
    assert math.isnan(stable_index(summarize(np.zeros(5))))
