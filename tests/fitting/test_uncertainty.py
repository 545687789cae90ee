"""Standard errors against closed forms and against the scatter of simulated fits."""

import math

import numpy as np
import pytest

from gradstats.families import DGamma, DGenPareto, DWeibull, GenNorm, Laplace, LogNorm, Normal, T
from gradstats.fitting.uncertainty import standard_errors
from gradstats.summary import summarize

LAWS = (
    Laplace(2.0),
    Normal(1e-4),
    DGamma(0.6, 1e-3),
    DGenPareto(0.25, 5.0),
    DGenPareto(-0.2, 1.0),
    GenNorm(0.7, 1.0),
    DWeibull(0.6, 1e-6),
    T(3.0, 1.0),
    LogNorm(1.2, 1.0),
)
DRAWS = 200


def sample(law, n, seed):
    return summarize(law.rvs(n, np.random.default_rng([seed, 7])).astype(np.float32))


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say(law):
    """95 % of 200 intervals, within four binomial standard deviations."""
    covered = dict.fromkeys(law.parameters, 0)
    for seed in range(DRAWS):
        summary = sample(law, 2_000, seed)
        fitted = type(law).fit(summary)
        for name, error in standard_errors(fitted, summary).items():
            missed = abs(fitted.parameters[name] - law.parameters[name])
            covered[name] += missed < 1.96 * error
    slack = 4 * math.sqrt(0.95 * 0.05 / DRAWS)
    for count in covered.values():
        assert abs(count / DRAWS - 0.95) < slack


@pytest.mark.parametrize("n", [1_000, 100_000])
def test_known_information(n):
    """Laplace: b/√n; normal: σ/√2n; log-normal: s/√2n and bs/√n; Pareto: (1+a)/√n (its shape)."""
    for law, expected in (
        (Laplace(2.0), {"scale": 2 / math.sqrt(n)}),
        (Normal(2.0), {"scale": 2 / math.sqrt(2 * n)}),
        (LogNorm(0.5, 2.0), {"shape": 0.5 / math.sqrt(2 * n), "scale": 1 / math.sqrt(n)}),
        (DGenPareto(0.2, 1.0), {"shape": 1.2 / math.sqrt(n), "scale": math.sqrt(2.4 / n)}),
    ):
        quantiles = summarize(law.isf((np.arange(n) + 0.5) / n))
        found = standard_errors(type(law).fit(quantiles), quantiles)
        assert found == pytest.approx(expected, rel=0.05)


def test_zeros_tell_nothing_of_a_distribution():
    draws = Laplace(2.0).rvs(1_000, np.random.default_rng(3))
    dense, sparse = summarize(draws), summarize(np.concatenate([draws, np.zeros(9_000)]))
    errors = [standard_errors(Laplace.fit(each), each) for each in (dense, sparse)]
    assert errors[0] == pytest.approx(errors[1])


def test_a_parameter_at_its_bound_has_no_error():
    normal = summarize(Normal(1.0).isf((np.arange(5_000) + 0.5) / 5_000))
    errors = standard_errors(T.fit(normal), normal)
    assert math.isnan(errors["shape"])
    assert errors["scale"] == pytest.approx(1 / math.sqrt(2 * 5_000), rel=0.05)


def test_no_error_is_told_away_from_the_maximum():
    summary = sample(Laplace(1.0), 500, 0)
    assert math.isnan(standard_errors(GenNorm(5.0, 20.0), summary)["shape"])
