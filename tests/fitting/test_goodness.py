"""Effect sizes from Summaries against scipy and brute force on the raw elements."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from gradstats.families import FAMILIES, DGamma, DGenPareto, Laplace, Normal
from gradstats.fitting.goodness import (
    ad_distance,
    ks_distance,
    log_likelihood,
    quantile_pairs,
    rescaled,
    tail_error,
    wasserstein,
)
from gradstats.ratios import kept_count
from gradstats.summary.summarizing import summarize

N = 40_000
RATIOS = (0.5, 0.1, 0.01, 0.001)


def draw(law, seed, zeros=0.0):
    rng = np.random.default_rng(seed)
    values = law.rvs(size=N, random_state=rng).astype(np.float32)
    values[rng.random(N) < zeros] = 0
    return values


SAMPLES = {
    "laplace": draw(stats.laplace(scale=1e-3), 1),
    "normal": draw(stats.norm(scale=20.0), 2),
    "peaked": draw(stats.dgamma(0.5, scale=1e-4), 3, zeros=0.3),
    "heavy": draw(stats.t(3, scale=1e-6), 4),
}


@pytest.fixture(params=SAMPLES)
def sample(request):
    return SAMPLES[request.param]


@pytest.fixture(params=FAMILIES, ids=lambda law: law.name)
def fitted_to(request):
    return request.param


def test_the_distance_is_that_of_a_kolmogorov_smirnov_test_on_the_magnitudes(sample, fitted_to):
    summary = summarize(sample)
    law = fitted_to.fit(summary)
    magnitudes = np.abs(sample[sample != 0]).astype(np.float64)
    exact = stats.kstest(magnitudes, lambda m: 1 - 2 * law.scipy().sf(m)).statistic
    fullest_bin = summary.counts.max() / summary.nonzero
    found = ks_distance(law, summary)
    assert exact - fullest_bin - 1e-9 <= found <= exact + 1e-9


def test_the_likelihood_is_the_mean_log_density_of_the_raw_elements(sample, fitted_to):
    law = fitted_to.fit(summarize(sample))
    exact = law.scipy().logpdf(sample[sample != 0].astype(np.float64)).mean()
    assert log_likelihood(law, summarize(sample)) == pytest.approx(exact, abs=2e-3)


def test_the_likelihood_prefers_the_law_that_the_elements_came_from():
    for name, right, wrong in (("laplace", Laplace, Normal), ("normal", Normal, Laplace)):
        summary = summarize(SAMPLES[name])
        scores = [log_likelihood(law.fit(summary), summary) for law in (right, wrong)]
        distances = [ks_distance(law.fit(summary), summary) for law in (right, wrong)]
        assert scores[0] > scores[1]
        assert distances[0] < 0.02 < distances[1]


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_tail_error_is_a_count_of_elements_above_the_threshold(sample, fitted_to, ratio):
    summary = summarize(sample)
    law = fitted_to.fit(summary)
    threshold, khat_over_k = tail_error(law, summary, ratio)
    k = kept_count(N, ratio)
    nonzero = np.count_nonzero(sample)
    assert 2 * law.scipy().sf(threshold) == pytest.approx(min(1, ratio * N / nonzero), rel=1e-6)
    magnitudes = np.abs(sample)
    in_the_bin_it_cuts = np.count_nonzero(np.abs(magnitudes - threshold) <= threshold / 128)
    counted = np.count_nonzero(magnitudes > threshold)
    assert khat_over_k == pytest.approx(counted / k, abs=(in_the_bin_it_cuts + 1e-6) / k)


def test_a_target_beyond_the_non_zero_share_keeps_every_non_zero():
    sample = SAMPLES["peaked"]
    nonzero = np.count_nonzero(sample)
    summary = summarize(sample)
    threshold, khat_over_k = tail_error(Laplace.fit(summary), summary, 0.9)
    assert threshold == 0
    assert khat_over_k == nonzero / kept_count(N, 0.9)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_named(ratio):
    summary = summarize(SAMPLES["laplace"])
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\].*got {ratio}"):
        tail_error(Laplace.fit(summary), summary, ratio)


def sorted_magnitudes(sample):
    return np.sort(np.abs(sample[sample != 0]).astype(np.float64))


def test_anderson_darling_is_the_statistic_over_n(sample, fitted_to):
    """Against the sum over order statistics that defines A²."""
    law, m = fitted_to.fit(summarize(sample)), sorted_magnitudes(sample)
    n, tail = len(m), law.log_kept(m)
    body = np.log(-np.expm1(tail))
    exact = -1 - ((2 * np.arange(1, n + 1) - 1) * (body + tail[::-1])).sum() / n**2
    # inside a bin the order statistics are not known: a part of 1/128 of the magnitude
    assert ad_distance(law, summarize(sample)) == pytest.approx(exact, rel=5e-3, abs=2e-5)


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (1e-3, 1.0), (1.0, 3.0)])
def test_anderson_darling_of_a_uniform_sample_against_quadrature(low, high):
    """The integral over the law's own shares, with the exact distribution of the data."""
    values = np.linspace(low, high, 20_001).astype(np.float32)
    law = Laplace(0.7)

    def integrand(u):
        c = np.clip((high + 0.7 * np.log(u)) / (high - low), 0, 1)  # share above the u-quantile
        return (c - u) ** 2 / (u * (1 - u))

    corners = sorted(np.exp(-np.array([low, high]) / 0.7))
    exact = sum(
        integrate.quad(integrand, a, b, limit=500)[0]
        for a, b in pairwise([1e-300, *corners, 1 - 1e-16])
    )
    # 20,001 points stand for the whole interval
    assert ad_distance(law, summarize(values)) == pytest.approx(exact, rel=3e-4)


def test_a_law_that_ends_before_the_data_is_infinitely_far_in_the_tail():
    law = DGenPareto(-0.5, 1.0)  # ends at 2
    assert ad_distance(law, summarize(np.float32([0.1, 0.5, 1.0, 2.5]))) == np.inf
    assert np.isfinite(ad_distance(law, summarize(np.float32([0.1, 0.5, 1.0, 1.9]))))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.slow
def test_wasserstein_is_the_distance_of_the_quantiles(sample, fitted_to, order):
    """Against the sorted magnitudes themselves, with five points of the law between two."""
    law, m = fitted_to.fit(summarize(sample)), sorted_magnitudes(sample)
    if law.tail_index <= order:
        assert wasserstein(law, summarize(sample), order) == np.inf
        return
    n, fine = len(m), 5
    shares = 1 - (np.arange(n * fine) + 0.5) / (n * fine)
    gaps = np.abs(np.repeat(m, fine) - law.threshold(shares)) ** order
    depth = np.linspace(0, 300, 30_001)  # above the largest element the law has its whole tail
    tail = np.abs(m[-1] - law.threshold(np.exp(-depth) / n)) ** order * np.exp(-depth) / n
    top = np.trapezoid(tail, depth)
    exact = ((gaps[:-fine].sum() / (n * fine) + top) ** (1 / order)) / m.mean()
    assert wasserstein(law, summarize(sample), order) == pytest.approx(exact, rel=0.01, abs=2e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_of_two_exponentials_is_known(order):
    """Quantiles are proportional: W_r = |a - b| · Γ(r+1)^(1/r)."""
    shares = (np.arange(200_000) + 0.5) / 200_000
    data = summarize((-np.log(shares)).astype(np.float32))
    exact = 0.5 * {1: 1.0, 2: np.sqrt(2)}[order]
    assert wasserstein(Laplace(1.5), data, order) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("shape", [0.5, 0.9, 0.99, 0.9999])
def test_wasserstein_reaches_to_the_end_of_a_power_tail(shape):
    """Above the data everywhere, the law is as far as its mean b/(1 - a) is."""
    data = summarize(np.float32(np.linspace(1e-4, 1e-3, 500)))
    law, mean = DGenPareto(shape, 1.0), data.moments().mean
    exact = (1 / (1 - shape) - mean) / mean
    # near 0 the data are above the law
    assert wasserstein(law, data, 1) == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize(
    ("shape", "orders"), [(0.4, ()), (0.5, (2,)), (0.6, (2,)), (1.0, (1, 2)), (1.2, (1, 2))]
)
def test_wasserstein_is_infinite_where_the_law_lacks_the_moment(shape, orders):
    data = summarize(SAMPLES["heavy"])
    infinite = [r for r in (1, 2) if wasserstein(DGenPareto(shape, 1e-6), data, r) == np.inf]
    assert tuple(infinite) == orders


def test_distances_of_bfloat16_are_those_of_its_values():
    sample = torch.from_numpy(SAMPLES["laplace"]).bfloat16()
    law, m = Laplace(1.1e-3), sorted_magnitudes(sample.float().numpy())
    exact = stats.wasserstein_distance(m, law.threshold((np.arange(400_000) + 0.5) / 400_000))
    assert wasserstein(law, summarize(sample), 1) == pytest.approx(exact / m.mean(), rel=0.01)


def test_rescaling_keeps_the_shape_and_finds_the_likeliest_scale(sample, fitted_to):
    law = fitted_to.fit(summarize(sample))
    other = summarize(sample * np.float32(7))
    moved = rescaled(law, other)
    assert moved.parameters.get("shape") == law.parameters.get("shape")
    # where a law ends, the bin of the largest element has its say
    assert moved.scale == pytest.approx(7 * law.scale, rel=5e-3)
    for factor in (0.99, 1.01):
        beside = replace(moved, scale=moved.scale * factor)
        assert log_likelihood(beside, other) < log_likelihood(moved, other) + 1e-9


def test_rescaling_a_bounded_law_reaches_over_the_data():
    law = DGenPareto(-0.4, 1.0)  # ends at 2.5
    moved = rescaled(law, summarize(np.linspace(0.01, 10, 1000).astype(np.float32)))
    assert float(moved.threshold(0)) >= 10 * (1 - 1e-9)


def test_quantile_pairs_of_the_right_law_lie_on_the_diagonal():
    shares = (np.arange(100_000) + 0.5) / 100_000
    law, data = quantile_pairs(DGamma(0.5, 2.0), summarize(DGamma(0.5, 2.0).threshold(shares)), 50)
    assert law.shape == data.shape == (50,)
    np.testing.assert_allclose(data[:-3], law[:-3], rtol=0.02)  # the last few elements are coarse
    assert np.all(np.diff(law) > 0)
