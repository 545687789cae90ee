"""Effect sizes from Summaries against scipy and brute force on the raw elements."""

import numpy as np
import pytest
from scipy import stats

from gradstats.families import FAMILIES, Laplace, Normal
from gradstats.goodness import ks_distance, log_likelihood, tail_error
from gradstats.summary import kept_count, summarize

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


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


def test_the_distance_is_that_of_a_kolmogorov_smirnov_test_on_the_magnitudes(sample, family):
    summary = summarize(sample)
    law = family.fit(summary)
    magnitudes = np.abs(sample[sample != 0]).astype(np.float64)
    exact = stats.kstest(magnitudes, lambda m: 1 - 2 * law.scipy().sf(m)).statistic
    fullest_bin = summary.counts.max() / summary.nonzero
    found = ks_distance(law, summary)
    assert exact - fullest_bin - 1e-9 <= found <= exact + 1e-9


def test_the_likelihood_is_the_mean_log_density_of_the_raw_elements(sample, family):
    law = family.fit(summarize(sample))
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
def test_the_tail_error_is_a_count_of_elements_above_the_threshold(sample, family, ratio):
    summary = summarize(sample)
    law = family.fit(summary)
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
