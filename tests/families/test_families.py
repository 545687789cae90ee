"""Families against scipy, mpmath and published formulas."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from gradstats.families import (
    FAMILIES,
    DGamma,
    DGenPareto,
    DWeibull,
    FitError,
    GenNorm,
    Laplace,
    LogNorm,
    Normal,
    T,
    family,
)
from gradstats.summary import Moments, summarize
from gradstats.testing import check_family

MEMBERS = (
    Laplace(1.0),
    Laplace(3e-5),
    Normal(0.02),
    *(DGamma(shape, 0.01) for shape in (0.1, 0.5, 0.9, 1.0, 2.0, 20.0)),
    *(DGenPareto(shape, 0.01) for shape in (-0.45, -0.25, -1e-9, 0.0, 1e-12, 0.2, 0.3)),
    *(GenNorm(shape, 0.01) for shape in (0.3, 0.6, 1.0, 2.0, 5.0)),
    *(DWeibull(shape, 0.01) for shape in (0.4, 1.0, 3.0)),
    *(T(shape, 0.01) for shape in (3.0, 4.5, 30.0, 150.0)),
    *(LogNorm(shape, 0.01) for shape in (0.5, 1.0)),
)
EXTREME = (
    *(DGamma(shape, 2.0) for shape in (1e4, 0.02, 70.0)),
    *(DGenPareto(shape, 2.0) for shape in (-3.0, -1.0, -0.5, 1e-300, 0.8, 4.0)),
    *(T(shape, 2.0) for shape in (0.3, 1.0, 500.0)),
    *(GenNorm(shape, 2.0) for shape in (0.15, 15.0)),
    *(DWeibull(shape, 2.0) for shape in (0.15, 15.0)),
    LogNorm(4.0, 2.0),
)


@pytest.mark.parametrize("law", MEMBERS, ids=repr)
@pytest.mark.slow
def test_members_obey_the_laws(law):
    check_family(law)


def test_every_family_is_among_the_members():
    assert {type(law) for law in MEMBERS} == set(FAMILIES)


def exact_log_kept(law, magnitude):
    z = mpmath.mpf(magnitude) / mpmath.mpf(law.scale)
    if isinstance(law, Laplace):
        return -z
    if isinstance(law, Normal):
        return mpmath.log(mpmath.erfc(z / mpmath.sqrt(2)))
    a = mpmath.mpf(law.shape)
    if isinstance(law, GenNorm):
        return mpmath.log(mpmath.gammainc(1 / a, z**a, mpmath.inf, regularized=True))
    if isinstance(law, DWeibull):
        return -(z**a)
    if isinstance(law, LogNorm):
        return mpmath.log(mpmath.erfc(mpmath.log(z) / a / mpmath.sqrt(2)) / 2)
    if isinstance(law, T):
        x = a / (a + z * z)
        return mpmath.log(mpmath.betainc(a / 2, mpmath.mpf(1) / 2, 0, x, regularized=True))
    if isinstance(law, DGamma):
        return mpmath.log(mpmath.gammainc(a, z, mpmath.inf, regularized=True))
    return -mpmath.log1p(a * z) / a if a else -z


@pytest.mark.parametrize("law", MEMBERS + EXTREME, ids=repr)
def test_log_kept_in_the_far_tail(law):
    """Multiples of the 1e-8 threshold reach where the probability itself is below 1e-308."""
    start = float(law.threshold(1e-8))
    bounded = getattr(law, "shape", 0) < 0 and isinstance(law, DGenPareto)
    multiples = (0.1, 0.5, 0.9) if bounded else (0.01, 0.5, 1.0, 3.0, 20.0, 100.0, 1000.0)
    with mpmath.workdps(60):
        for magnitude in (start * multiple for multiple in multiples):
            exact = float(exact_log_kept(law, magnitude))
            assert float(law.log_kept(magnitude)) == pytest.approx(exact, rel=1e-12, abs=1e-15)
    if not bounded:
        assert float(law.log_kept(start)) == pytest.approx(math.log(1e-8), rel=1e-12)


@pytest.mark.parametrize("law", EXTREME[1:], ids=repr)  # scipy's dgamma.pdf overflows at 1e4
def test_extreme_parameters_agree_with_scipy(law):
    ratios = np.array([0.9, 0.5, 0.1, 1e-4, 1e-8])
    if getattr(law, "shape", 0) <= -0.5:  # one ulp below the end of the support keeps 1e-8
        ratios = ratios[:3]
    oracle, x = law.scipy(), law.threshold(ratios)
    assert np.allclose(law.kept(x), ratios, rtol=1e-9, atol=0)
    for name in ("pdf", "sf", "cdf"):
        assert np.allclose(getattr(law, name)(x), getattr(oracle, name)(x), rtol=1e-9, atol=0)
    assert np.allclose(law.isf(ratios), oracle.isf(ratios), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [-3.0, -1.0, -0.5])
def test_bounded_support_ends_where_it_should(shape):
    law = DGenPareto(shape, 2.0)
    end = -2.0 / shape
    assert law.scipy().support() == (-end, end)
    assert float(law.isf(0)) == end
    for beyond in (end * 1.01, end * 1e6):
        assert (float(law.pdf(beyond)), float(law.kept(beyond))) == (0, 0)
        assert (float(law.cdf(-beyond)), float(law.cdf(beyond))) == (0, 1)


@pytest.mark.parametrize("law", [DGamma(1.0, 0.3), DGenPareto(0.0, 0.3), DGenPareto(1e-13, 0.3)])
def test_special_cases_meet_in_laplace(law):
    laplace, x = Laplace(0.3), np.linspace(-9, 9, 61)
    for name in ("logpdf", "cdf", "sf"):
        ours, theirs = getattr(law, name)(x), getattr(laplace, name)(x)
        assert np.allclose(ours, theirs, rtol=1e-11, atol=1e-15)
    ratios = np.logspace(0, -8, 9)
    assert np.allclose(law.threshold(ratios), laplace.threshold(ratios), rtol=1e-11)


def draws(oracle, seed, n=50_000):
    magnitudes = oracle.rvs(size=n, random_state=np.random.default_rng(seed))
    signs = np.where(np.arange(n) % 2, 1, -1)
    return (magnitudes * signs).astype(np.float32), magnitudes


@pytest.mark.parametrize(
    ("cls", "half", "shape"),
    [(DGamma, stats.gamma, shape) for shape in (0.3, 0.9, 3.0)]
    + [(DGenPareto, stats.genpareto, shape) for shape in (-0.3, 0.05, 0.2, 0.6)]
    + [(DWeibull, stats.weibull_min, shape) for shape in (0.4, 1.0, 2.5)]
    + [(GenNorm, stats.halfgennorm, shape) for shape in (0.5, 1.0, 3.0)]
    + [(LogNorm, stats.lognorm, shape) for shape in (0.4, 1.5)],
)
@pytest.mark.slow
def test_mle_is_that_of_scipy(cls, half, shape):
    grad, magnitudes = draws(half(shape, scale=0.01), seed=7)
    reference_shape, _, reference_scale = half.fit(magnitudes, floc=0)
    law = cls.fit(grad, method="mle")
    # a shape near 0 is judged against 1 % of an ordinary one
    assert law.shape == pytest.approx(reference_shape, rel=0.01, abs=0.002)
    assert law.scale == pytest.approx(reference_scale, rel=0.01)


def test_mle_of_one_parameter_families_is_that_of_scipy():
    grad, magnitudes = draws(stats.expon(scale=3.0), seed=8)
    assert Laplace.fit(grad).scale == pytest.approx(stats.expon.fit(magnitudes, floc=0)[1])
    assert Normal.fit(grad).scale == pytest.approx(stats.norm.fit(grad, floc=0)[1], rel=1e-6)


@pytest.mark.parametrize("size", [3, 100, 20_000])
def test_moments_are_the_published_formulas(size):
    magnitudes = np.random.default_rng(size).gamma(0.7, 0.2, size)
    mean, var = magnitudes.mean(), magnitudes.var(ddof=1)
    s = math.log(mean) - np.log(magnitudes).mean()
    a = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    peak = mean**2 / var
    expected = {
        Laplace: {"scale": mean},
        DGamma: {"shape": a, "scale": mean / a},
        DGenPareto: {"shape": (1 - peak) / 2, "scale": mean * (peak + 1) / 2},
        Normal: {"scale": math.sqrt((magnitudes**2).mean())},
        LogNorm: {
            "shape": math.sqrt(math.log(1 + 1 / peak)),
            "scale": mean / math.sqrt(1 + 1 / peak),
        },
    }
    for cls in expected:
        exact = Moments(size, mean, var, float(np.log(magnitudes).mean()))
        assert cls.from_moments(exact).parameters == pytest.approx(expected[cls], rel=1e-12)
        if size < 10 and cls.bounds:
            continue  # too few magnitudes for a shape
        fitted = cls.fit(magnitudes, method="moments").parameters
        # mean ln|g| comes from the bins: half a bin in one element, much less in many
        assert fitted == pytest.approx(expected[cls], rel=0.02 if size < 100 else 2e-3)


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("method", ["moments", "mle"])
def test_zeros_and_non_finite_elements_are_not_fitted(cls, method):
    grad = torch.from_numpy(draws(stats.gamma(0.8), seed=9)[0])
    junk = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf]).repeat(2000)
    assert cls.fit(torch.cat([junk, grad]), method=method).parameters == pytest.approx(
        cls.fit(grad, method=method).parameters, rel=1e-6
    )


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_summary_fits_like_its_gradient(cls):
    grad = draws(stats.gamma(0.8), seed=10)[0]
    assert cls.fit(summarize(grad)) == cls.fit(grad)


DATA = {
    "few values": torch.arange(-9.0, 10.0),
    "constant": torch.full((50,), -0.1),
    "narrow": torch.linspace(1.001, 1.03, 44),
    "all zero": torch.zeros(50),
    "one element": torch.tensor([3.0]),
    "empty": torch.zeros(0),
    "no finite": torch.tensor([math.nan, math.inf]),
}


@pytest.mark.parametrize("method", ["moments", "mle"])
@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (cls, data, f"cannot fit {cls.name}: no finite non-zero magnitude among {n} elements")
        for cls in FAMILIES
        for data, n in (("all zero", 50), ("empty", 0), ("no finite", 2))
    ]
    + [
        (cls, data, f"cannot fit {cls.name}: {n}, at least 10 are needed")
        for cls in FAMILIES
        if cls.bounds
        for data, n in (
            ("constant", "50 magnitudes in 1 bins of the float32 grid"),
            ("one element", "1 distinct magnitudes"),
            ("few values", "9 distinct magnitudes"),
            ("narrow", "44 magnitudes in 4 bins of the float32 grid"),
        )
    ],
)
def test_undetermined_parameters_are_a_fit_error(cls, data, message, method):
    with pytest.raises(FitError, match=message):
        cls.fit(DATA[data], method=method)


@pytest.mark.parametrize("cls", [Laplace, Normal])
@pytest.mark.parametrize(("data", "scale"), [("constant", 0.1), ("one element", 3.0)])
def test_a_scale_needs_one_magnitude(cls, data, scale):
    assert cls.fit(DATA[data]).scale == pytest.approx(scale)


def test_fit_error_is_a_value_error_and_unknown_names_are_named():
    assert issubclass(FitError, ValueError)
    with pytest.raises(ValueError, match=r"family must be one of laplace, .*, got 'nope'"):
        family("nope")
    with pytest.raises(ValueError, match=r"method of dgamma must be one of .*, got 'guess'"):
        DGamma.fit(torch.ones(3), method="guess")


@pytest.mark.parametrize("cls", FAMILIES)
def test_families_are_found_by_name(cls):
    assert family(cls.name) is cls


@pytest.mark.parametrize("law", MEMBERS[::3], ids=repr)
def test_shapes_follow_numpy(law):
    grid = np.full((2, 3), 0.25)
    for name in ("pdf", "logpdf", "cdf", "sf", "kept", "log_kept", "isf", "ppf", "threshold"):
        method = getattr(law, name)
        assert np.shape(method(0.25)) == ()
        assert method(grid).shape == (2, 3)
        assert np.all(method(grid) == method(0.25))


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.slow
def test_the_likelihood_of_t_is_that_of_scipy(shape):
    grad = stats.t(shape, scale=0.01).rvs(50_000, random_state=np.random.default_rng(7))
    reference = stats.t.fit(grad, floc=0)
    law = T.fit(grad.astype(np.float32))
    assert law.shape == pytest.approx(reference[0], rel=0.01)
    assert law.scale == pytest.approx(reference[2], rel=0.01)
    assert law.tail_index == law.shape


@pytest.mark.parametrize(
    ("law", "other"),
    [
        (GenNorm(1.0, 0.3), Laplace(0.3)),
        (GenNorm(2.0, 0.3 * math.sqrt(2)), Normal(0.3)),
        (DWeibull(1.0, 0.3), Laplace(0.3)),
        (T(1e9, 0.3), Normal(0.3)),
    ],
)
def test_special_cases_meet(law, other):
    x = np.linspace(-1.5, 1.5, 31)
    for name in ("logpdf", "cdf", "sf"):
        np.testing.assert_allclose(getattr(law, name)(x), getattr(other, name)(x), rtol=1e-6)


def test_t_with_one_degree_of_freedom_is_cauchys_law():
    x = np.linspace(-9, 9, 61)
    np.testing.assert_allclose(T(1.0, 0.3).cdf(x), stats.cauchy(scale=0.3).cdf(x), rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("cls", FAMILIES)
def test_a_fit_follows_the_unit_over_the_range_of_float32(cls, unit):
    grad = draws(stats.gamma(0.8), seed=11)[1]
    one, other = cls.fit(grad), cls.fit((grad * unit).astype(np.float32))
    assert other.scale == pytest.approx(one.scale * unit, rel=1e-3)
    assert other.parameters.get("shape", 0) == pytest.approx(
        one.parameters.get("shape", 0), rel=1e-3
    )


@pytest.mark.parametrize(
    ("cls", "data", "shape"),
    [
        (T, stats.norm(), 200.0),
        (DGenPareto, stats.uniform(), -0.5),
        (GenNorm, stats.uniform(), 20.0),
    ],
)
def test_a_parameter_at_the_end_of_its_search_says_so(cls, data, shape):
    values = data.ppf((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)
    law = cls.fit(values)
    assert law.at_bound == ("shape",)
    assert law.shape == pytest.approx(shape, rel=1e-3)


@pytest.mark.parametrize(
    ("cls", "values"),
    [(T, np.linspace(0.9, 1.1, 50)), (GenNorm, np.linspace(0.9, 1.1, 50))],
)
def test_moments_at_the_estimators_limit_are_a_fit_error(cls, values):
    with pytest.raises(FitError, match=r"must lie in \["):
        cls.fit(values.astype(np.float64), method="moments")
