"""Sorted decay and best-k errors against sorted vectors and closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from gradstats.fitting.compressibility import best_k_error, decay, decay_row
from gradstats.summary import summarize

N = 400_000
SHARES = (np.arange(N) + 0.5) / N


def powers(p, n=N):
    return (np.arange(n) + 1.0) ** -p


@pytest.mark.parametrize("p", [0.3, 0.6, 0.7, 1.0, 2.0])
def test_a_power_of_the_rank_is_a_power_law_with_that_exponent(p):
    found = decay(summarize(powers(p).astype(np.float32)))
    assert found.power_law
    assert found.exponent == pytest.approx(p, rel=0.01)
    assert found.low < p < found.high
    assert found.verdict.startswith("compressible" if p > 0.5 else "not compressible")


@pytest.mark.parametrize("law", [stats.expon, stats.halfnorm, stats.uniform, stats.gamma(0.5)])
@pytest.mark.slow
def test_light_tails_are_no_power_law(law):
    found = decay(summarize(law.isf(SHARES).astype(np.float32)))
    assert not found.power_law
    assert found.verdict.startswith("no power law: over ranks 100–40,000")


@pytest.mark.parametrize(("law", "exponent"), [(stats.t(1), 1.0), (stats.t(2), 0.5)])
def test_a_power_tail_has_the_inverse_of_its_index(law, exponent):
    found = decay(summarize(law.isf(SHARES / 2)), window=(3e-4, 2e-2))
    assert found.power_law
    assert found.exponent == pytest.approx(exponent, rel=0.03)


@pytest.mark.slow
def test_the_interval_covers_over_samples():
    """95 % of the intervals of 60 samples, within four binomial standard deviations."""
    covered = 0
    for seed in range(60):
        draws = stats.pareto(2.0).rvs(20_000, random_state=np.random.default_rng(seed))
        found = decay(summarize(draws), window=(5e-3, 1.0))
        covered += found.low < 0.5 < found.high
    assert covered / 60 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 60)


def test_few_elements_cannot_tell_a_curve():
    draws = np.random.default_rng(0).exponential(size=2_500)
    found = decay(summarize(draws))
    assert (found.first_rank, found.last_rank) == (100, 250)
    assert found.curvature_high - found.curvature_low > 0.1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "0 distinct magnitudes"),
        ([0.0] * 500, "0 distinct magnitudes"),
        (np.full(5_000, 3.0), "1 distinct magnitudes"),
        (np.arange(150.0), "ranks 100 to 15 of 149 magnitudes are fewer than 100"),
    ],
)
@pytest.mark.slow
def test_too_few_magnitudes_are_a_reason(values, reason):
    with pytest.raises(ValueError, match=f"cannot fit a decay: {reason}"):
        decay(summarize(np.float64(values)))
    row = decay_row(summarize(np.float64(values)))
    assert math.isnan(row["decay_exponent"])
    assert row["power_law"] is None
    assert "cannot fit a decay" in row["decay"]


@pytest.mark.parametrize("window", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.5)])
def test_a_window_that_is_none_is_named(window):
    with pytest.raises(ValueError, match="window must rise"):
        decay(summarize(powers(1.0)), window=window)


@pytest.mark.parametrize("ratio", [1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("law", [stats.expon, stats.halfnorm, stats.t(2)])
def test_the_best_k_error_is_that_of_the_sorted_vector(law, ratio):
    values = law.isf(SHARES / 2).astype(np.float32).astype(np.float64)
    values[-1_000:] = 0
    largest = np.sort(np.abs(values))[::-1]
    exact = math.sqrt((largest[round(ratio * N) :] ** 2).sum() / (largest**2).sum())
    assert best_k_error(summarize(values), ratio) == pytest.approx(exact, rel=2e-3, abs=1e-9)


def test_published_values_of_power_laws_and_of_laplace():
    """σ_k of j^-p, d = 1e6; the energy that Laplace's largest tenth, hundredth … hold."""
    for p, expected in ((0.6, 0.969711), (0.7, 0.384389), (1.0, 0.031599)):
        norm = math.sqrt((powers(p, 1_000_000) ** 2).sum())
        sigma = best_k_error(summarize(powers(p, 1_000_000)), 1e-3) * norm
        assert sigma == pytest.approx(expected, rel=5e-3)
    laplace = summarize(-np.log(SHARES))
    for ratio, energy in ((0.1, 0.59535), (0.01, 0.16209), (0.001, 0.03177)):
        assert 1 - best_k_error(laplace, ratio) ** 2 == pytest.approx(energy, rel=5e-3)


def test_nothing_has_no_best_k_error():
    assert math.isnan(best_k_error(summarize(np.zeros(10)), 0.1))
