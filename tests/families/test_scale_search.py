"""The likeliest scale, however far off: against closed forms, dense scans and scipy's search."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, special

import gradstats
from gradstats.families import (
    FAMILIES,
    DGamma,
    DGenPareto,
    DWeibull,
    Family,
    FitError,
    GenNorm,
    Laplace,
    LogNorm,
    Normal,
    T,
)
from gradstats.families.search import falling_root, log_power_mean, peak, softplus
from gradstats.fitting.goodness import log_likelihood, rescaled
from gradstats.runs.groups import groups
from gradstats.summary import summarize

DEMO = Path(__file__).parents[2] / "data" / "demo.zarr.zip"
LAWS = (
    Laplace(1.0),
    Normal(1.0),
    *(DGamma(shape, 1.0) for shape in (0.05, 1.0, 30.0)),
    *(DGenPareto(shape, 1.0) for shape in (-0.49, -0.1, 0.0, 1e-12, 0.3, 5.0)),
    *(GenNorm(shape, 1.0) for shape in (0.1, 1.0, 20.0)),
    *(DWeibull(shape, 1.0) for shape in (0.1, 1.0, 20.0)),
    *(T(shape, 1.0) for shape in (0.2, 3.0, 200.0)),
    *(LogNorm(shape, 1.0) for shape in (0.1, 9.0)),
)


def draws():
    rng = np.random.default_rng(8)
    one = rng.gamma(0.7, 1e-3, 3_000)
    two = np.concatenate([one, rng.standard_normal(1_500) * 1e-13])  # rounding noise beside it
    return {
        "gamma": one,
        "two scales": two,
        "mostly noise": np.concatenate([one[:20], rng.standard_normal(3_000) * 1e-13]),
        "cauchy": rng.standard_cauchy(3_000),
        "heavier": np.exp(rng.standard_cauchy(3_000).clip(-300, 300)),
        "one far off": np.append(one, 1e30),
        "integers": np.arange(1.0, 48.0),
    }


SAMPLES = draws()


@pytest.fixture(params=SAMPLES)
def summary(request):
    return summarize(SAMPLES[request.param])


@pytest.fixture(params=LAWS, ids=repr)
def law(request):
    return request.param


def mean_log_density(law, summary, log_scale):
    """At |g|/scale, so that no scale is out of range; -inf where the law ends before the data."""
    if math.log(summary.max_abs) - log_scale > math.log(float(law.threshold(0.0))) + 1e-12:
        return -math.inf
    z = np.exp(np.log(np.minimum(summary.centres, summary.max_abs)) - log_scale)
    z = np.maximum(z, 1e-300)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = summary.counts @ law.logpdf(z) / summary.nonzero
    return -math.inf if math.isnan(mean) else float(mean) - log_scale


def scanned(law, summary):
    """The highest likelihood over ±100 nats about every magnitude: a scan, then a search."""
    logs = np.log(summary.edges[0])
    grid = np.arange(logs.min() - 100, logs.max() + 100, 0.25)
    values = [mean_log_density(law, summary, log_scale) for log_scale in grid]
    best = int(np.argmax(values))
    found = optimize.minimize_scalar(
        lambda log_scale: min(-mean_log_density(law, summary, log_scale), 1e200),
        bounds=(grid[best] - 0.25, grid[best] + 0.25),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return max(values[best], -found.fun)


@pytest.mark.parametrize("name", ["gamma", "two scales", "one far off"])
@pytest.mark.slow
def test_the_rescaled_law_is_at_the_highest_of_a_dense_scan(law, name):
    summary = summarize(SAMPLES[name])
    found = log_likelihood(rescaled(law, summary), summary)
    exact = scanned(law, summary)
    assert (
        exact - 1e-9 <= found <= exact + 1e-6
    )  # scipy's search ends that far from a support's end


def test_closed_forms_are_where_the_search_of_all_families_ends(law, summary):
    logs, weights = np.log(summary.edges[1]), summary.counts / summary.nonzero
    closed, searched = law.log_scale(logs, weights), Family.log_scale(law, logs, weights)
    assert closed == pytest.approx(searched, abs=1e-5)


@pytest.mark.parametrize("method", ["mle", "moments"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rescaled_is_never_less_likely_than_not_rescaled(family, method):
    summaries = [summarize(values) for values in SAMPLES.values()]
    fitted = []
    for summary in summaries:
        try:
            fitted.append(family.fit(summary, method=method))
        except FitError:
            assert method == "moments"
    for law in fitted:
        for other in summaries:
            moved = log_likelihood(rescaled(law, other), other)
            assert moved >= log_likelihood(law, other)


@pytest.mark.slow
def test_rescaled_is_never_less_likely_on_the_demo():
    """Normal on head.weight was at -672 nats, three from the median; 4.58 is the highest."""
    steps = list(groups(gradstats.open(DEMO), by="parameter"))
    for one, other in pairwise(steps):
        for group, after in zip(one, other, strict=True):
            for family in FAMILIES:
                law = family.fit(group.summary)
                moved = log_likelihood(rescaled(law, after.summary), after.summary)
                assert moved >= log_likelihood(law, after.summary)
                if (family, group.name) == (Normal, "head.weight"):
                    assert moved == pytest.approx(4.58, abs=0.01)


@pytest.mark.parametrize("shape", [-0.5, -0.9, -1.0, -1.5])
def test_a_bounded_law_is_moved_over_the_data_and_no_further(shape):
    summary = summarize(np.linspace(0.01, 10, 1000))
    for scale in (1e-9, 1.0, 1e9):
        law = DGenPareto(shape, scale)
        moved = rescaled(law, summary)
        assert 10 * (1 - 1e-12) <= float(moved.threshold(0.0)) < 25
        assert log_likelihood(moved, summary) > -math.inf


def test_a_law_that_ends_before_the_largest_magnitude_has_no_likelihood():
    """Also where the largest lies in the bin that the law ends in."""
    values = np.array([*np.linspace(0.1, 1.9, 40), 1.99])
    law = DGenPareto(-0.5, 0.994)  # ends at 1.988, the bin's centre is 1.9883
    assert log_likelihood(law, summarize(values)) == -math.inf
    assert log_likelihood(DGenPareto(-0.5, 0.996), summarize(values)) > -math.inf


def searched(family, summary):
    """The highest likelihood over shape and scale: every shape of a grid, then scipy's simplex."""
    low, high = (max(min(end, 1e3), -1e3) for end in family.bounds["shape"])
    shapes = np.linspace(low, high, 41) if low < 0 else np.geomspace(max(low, 1e-3), high, 41)
    logs, weights = summary.logs, summary.counts / summary.nonzero

    def cost(point):
        shape, log_scale = point
        if not low <= shape <= high or (shape <= 0 and family is not DGenPareto):
            return math.inf
        return -mean_log_density(family(shape, 1.0), summary, log_scale)

    starts = [(s, Family.log_scale(family(s, 1.0), logs, weights)) for s in shapes]
    best = min(starts, key=cost)
    found = optimize.minimize(
        cost, best, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    return -min(found.fun, cost(best))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.bounds], ids=lambda f: f.name)
@pytest.mark.slow
def test_maximum_likelihood_is_the_highest_of_shapes_and_scales(family, summary):
    law = family.fit(summary)
    found = mean_log_density(replace(law, scale=1.0), summary, math.log(law.scale))
    # dgamma's has the exact mean, bins are not; those of integers have their values at one edge
    assert found >= searched(family, summary) - (2e-5 if family is DGamma else 1e-7)


def test_the_scale_of_a_heavy_tail_may_lie_far_below_the_median():
    """Of query-key-value biases, whose key part is rounding noise, it was 0.6 nats below."""
    summary = summarize(SAMPLES["two scales"])
    law = DGenPareto.fit(summary)
    assert law.at_bound == ("shape",)
    assert log_likelihood(law, summary) >= searched(DGenPareto, summary) - 1e-7


def test_searches_reach_as_far_as_they_must():
    for far in (-700.0, -3.0, 0.0, 1e3):
        assert peak(lambda x, far=far: -(abs(x - far) ** 1.5), 0.0) == pytest.approx(far, abs=1e-4)
    # -inf to the left of the support's end
    assert peak(lambda x: -x if x > 50 else -math.inf, 0.0) == pytest.approx(50, abs=1e-6)
    with pytest.raises(ValueError, match="still rises 4096 from 0"):
        peak(lambda x: x, 0.0)
    for far in (-700.0, 0.3, 5.0):
        root = falling_root(lambda x, far=far: (far - x, -1.0), -1e3, 1e3, 0.0)
        assert root == pytest.approx(far, abs=1e-9)
    steps = falling_root(lambda x: (math.copysign(1.0, 0.25 - x), 0.0), -1.0, 1.0, 0.0)
    assert steps == pytest.approx(0.25, abs=1e-9)


def test_means_in_logarithms_are_those_of_the_values():
    x, weights = np.array([1e-3, 0.2, 7.0]), np.array([0.5, 0.3, 0.2])
    for power in (0.1, 1.0, 2.0, 20.0):
        exact = math.log((weights @ x**power) ** (1 / power))
        assert log_power_mean(np.log(x), weights, power) == pytest.approx(exact, rel=1e-12)
    assert log_power_mean(np.array([-900.0, 900.0]), np.array([0.5, 0.5])) == pytest.approx(
        900 - math.log(2)
    )
    every = np.array([-800.0, -3.0, 0.0, 3.0, 800.0])
    np.testing.assert_allclose(softplus(every), -special.log_expit(-every), rtol=1e-14)
