"""The ends of distribution functions against mpmath, and arguments that no distribution has."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from gradstats.families import (
    FAMILIES,
    DGamma,
    DGenPareto,
    DWeibull,
    GenNorm,
    Laplace,
    LogNorm,
    Normal,
    T,
)
from gradstats.summary import summarize
from gradstats.thresholds import sidco_threshold
from tests.families.test_families import exact_log_kept

SHAPES = {
    GenNorm: (0.1, 0.5, 2.0, 20.0),
    T: (0.2, 0.5, 1.0, 3.0, 200.0, 1e4),
    DGamma: (1e-4, 0.1, 1.0, 20.0, 1e5),
    DWeibull: (0.1, 20.0),
    LogNorm: (0.01, 1.0, 50.0),
    DGenPareto: (1e-12, 0.3, 5.0),
}
LAWS = (Laplace(1.0), Normal(1.0), *(cls(s, 1.0) for cls, every in SHAPES.items() for s in every))
RATIOS = (0.999, 0.5, 1e-3, 1e-30, 1e-100, 1e-200, 1e-290, 1e-300)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.slow
def test_log_kept_of_any_magnitude_is_that_of_mpmath(law):
    far = min(float(law.threshold(1e-300)), 1e200)
    magnitudes = [1e-60, 1e-20, 1e-3, 1.0, *(far * m for m in (0.5, 2.0, 1e5, 1e60))]
    with mpmath.workdps(150):
        for magnitude in magnitudes:
            exact = exact_log_kept(law, magnitude)
            found = float(law.log_kept(magnitude))
            assert found == pytest.approx(float(exact), rel=1e-10, abs=1e-140), magnitude


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_thresholds_are_the_inverse_down_to_the_smallest_ratio(law):
    """Where a threshold leaves float64 it is 0 or inf, and then it must."""
    for ratio in RATIOS:
        threshold = float(law.threshold(ratio))
        if 0 < threshold < math.inf:
            assert float(law.log_kept(threshold)) == pytest.approx(math.log(ratio), rel=1e-9)
            continue
        limit = 1e308 if threshold else 1e-300
        beyond = float(law.log_kept(limit)) - math.log(ratio)
        assert beyond > 0 if threshold else beyond < 0, ratio


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_quantiles_of_the_ends(law):
    assert float(law.isf(0.0)) == math.inf
    assert float(law.ppf(0.0)) == -math.inf
    assert abs(float(law.isf(0.5))) == 0
    q = np.array([1e-300, 1e-20, 0.3])
    np.testing.assert_array_equal(law.ppf(q), -law.isf(q))


def test_far_quantiles_of_t_are_those_of_cauchy():
    q = np.array([1e-20, 1e-100, 1e-200, 1e-300])
    np.testing.assert_allclose(T(1.0, 2.0).isf(q), stats.cauchy(scale=2.0).isf(q), rtol=1e-12)
    np.testing.assert_allclose(T(1.0, 2.0).isf(q), 2 / (math.pi * q), rtol=1e-12)


MEMBERS = tuple(cls(0.7, 1.0) if cls.bounds else cls(1.0) for cls in FAMILIES)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_parameters_out_of_their_range_are_named(family, value):
    with pytest.raises(ValueError, match=f"scale of {family.name} must be positive and finite"):
        family(0.7, value) if family.bounds else family(value)
    if family.bounds and (family is not DGenPareto or not math.isfinite(value)):
        with pytest.raises(ValueError, match=f"shape of {family.name} must be .*finite, got"):
            family(value, 1.0)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("law", MEMBERS, ids=lambda law: law.name)
def test_shares_out_of_their_range_are_named(law, ratio):
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got"):
        law.threshold(ratio)
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\], got"):
        law.threshold([0.5, ratio])
    for quantile in (law.isf, law.ppf):
        with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], got"):
            quantile(ratio)


@pytest.mark.parametrize("law", MEMBERS, ids=lambda law: law.name)
def test_every_element_exceeds_a_negative_magnitude_and_nan_stays_nan(law):
    assert law.kept([-1.0, -math.inf, -0.0]).tolist() == [1, 1, 1]
    assert law.log_kept(-2.0) == 0
    assert float(law.kept(math.inf)) == 0
    for function in (law.kept, law.log_kept, law.sf, law.cdf, law.pdf, law.logpdf):
        assert math.isnan(float(function(math.nan)))


def test_a_double_gamma_of_few_integers_is_that_of_scipy():
    """Of 47 integers, whose values are the lower edges of their bins, it was 1.2 % off."""
    for values in (np.arange(1.0, 48.0), np.random.default_rng(3).gamma(2.0, 9.0, 47).round() + 1):
        shape, _, scale = stats.gamma.fit(values, floc=0)
        law = DGamma.fit(values.astype(np.float32))
        assert law.shape == pytest.approx(shape, rel=1e-5)
        assert law.scale == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, math.nan])
def test_a_target_of_sidco_out_of_its_range_is_named(ratio):
    with pytest.raises(ValueError, match=r"target_ratio must lie in \(0, 1\]"):
        sidco_threshold(summarize(np.ones(3)), ratio)


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 2.0, 8.0, 20.0, 57.0, 100.0])
def test_a_generalized_normal_of_any_shape_is_scipys(shape):
    x = np.array([1e-300, 1e-20, 1e-3, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0, 1.01, 1.3])
    expected = stats.gennorm(shape, scale=2.0).cdf(2 * x)
    np.testing.assert_allclose(GenNorm(shape, 2.0).cdf(2 * x), expected, rtol=1e-12)


def test_the_least_share_has_a_finite_threshold_of_the_normal():
    """By mpmath: the root of erfc(x/√2) = 2^-1074."""
    with mpmath.workdps(40):
        root = mpmath.findroot(
            lambda x: mpmath.log(mpmath.erfc(x / mpmath.sqrt(2))) + 1074 * mpmath.log(2), 38.4
        )
    assert float(Normal(1.0).threshold(2.0**-1074)) == pytest.approx(float(root), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_density_vanishes_at_infinity(family):
    law = family(**dict.fromkeys(family.__dataclass_fields__, 2.5))
    assert law.logpdf([np.inf, -np.inf]).tolist() == [-np.inf, -np.inf]
    assert law.pdf(np.inf) == 0
