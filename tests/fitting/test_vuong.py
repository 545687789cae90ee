"""Vuong's test: brute force, closed forms, its size under the null, and dependent elements."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import signal, special, stats

from gradstats.families import DGamma, DWeibull, GenNorm, Laplace, LogNorm, Normal, T, family
from gradstats.fitting.pairs import compare_distributions
from gradstats.fitting.vuong import relation_of
from tests.testing.own_families import HypSecant, InverseExponential

MIRRORED = (Laplace, InverseExponential)  # equally wrong for magnitudes that are log-normal


def once_bfloat16(values):
    """float32 values that are counted exactly."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def compared(values, families, **settings):
    (row,) = compare_distributions(values, families=families, **settings).to_dict("records")
    return row


@pytest.fixture(scope="module")
def draws():
    values = stats.t(4).rvs(20_000, random_state=np.random.default_rng(3))
    return once_bfloat16(values).astype(np.float64)


@pytest.mark.parametrize("correction", ["none", "aic", "bic"])
@pytest.mark.parametrize("families", [(DGamma, Normal), (LogNorm, T)])
def test_z_is_the_formula_over_single_elements(draws, families, correction):
    laws = [each.fit(draws) for each in families]
    ratio = laws[0].logpdf(draws) - laws[1].logpdf(draws)
    n, more = len(draws), len(laws[0].parameters) - len(laws[1].parameters)
    c = {"none": 0.0, "aic": more, "bic": more * math.log(n) / 2}[correction]
    blocks = ratio.reshape(80, 250).sum(axis=1)
    variance = ((blocks - 250 * ratio.mean()) ** 2).sum() / n * 80 / 79
    row = compared(draws, families, correction=correction, blocks=80)
    assert row["mean_log_ratio"] == pytest.approx(ratio.mean(), rel=1e-9)
    assert row["z"] == pytest.approx((ratio.sum() - c) / math.sqrt(n * variance), rel=1e-9)
    assert row["p"] == pytest.approx(2 * stats.t(79).sf(abs(row["z"])), rel=1e-9)
    single = (ratio.sum() - c) / math.sqrt(n) / ratio.std()
    assert row["z_independent"] == pytest.approx(single, rel=1e-9)
    assert row["inflation"] == pytest.approx(variance / ratio.var(), rel=1e-9)
    assert (row["blocks"], row["block_length"], row["n"]) == (80, 250, n)
    assert row["better"] == [each.name for each in families][row["z"] < 0]


def test_the_convention_of_powerlaw_is_z_independent_without_correction(draws):
    """Its R, normalised, is Σ l / √(n var l); its p is erfc(|R| / √(2 n var l))."""
    laws = [Laplace.fit(draws), Normal.fit(draws)]
    ratio = laws[0].logpdf(draws) - laws[1].logpdf(draws)
    spread = math.sqrt(((ratio - ratio.mean()) ** 2).sum())
    row = compared(draws, (Laplace, Normal), correction="none")
    assert row["z_independent"] == pytest.approx(ratio.sum() / spread, rel=1e-9)
    p = special.erfc(abs(ratio.sum()) / math.sqrt(2) / spread)
    assert 2 * stats.norm.sf(abs(row["z_independent"])) == pytest.approx(p, rel=1e-9)


def test_two_magnitudes_by_hand():
    """|g| of 1 and 3: Laplace has b = 2, the normal σ² = 5; l(1) - l(3) = 0.2."""
    values = np.random.default_rng(0).permutation(np.tile([1.0, -3.0], 500))
    row = compared(values, (Laplace, Normal), correction="none")
    mean = math.log(10 * math.pi) / 2 - math.log(4) - 0.5
    assert row["mean_log_ratio"] == pytest.approx(mean, rel=1e-2)  # bins of 1/128
    assert row["z_independent"] == pytest.approx(math.sqrt(1_000) * mean / 0.1, rel=2e-2)
    exact = compared(once_bfloat16(values), (Laplace, Normal), correction="none")
    assert exact["mean_log_ratio"] == pytest.approx(mean, rel=1e-12)
    assert exact["z_independent"] == pytest.approx(math.sqrt(1_000) * mean / 0.1, rel=1e-9)


def test_the_order_of_families_and_the_unit_do_not_matter(draws):
    row, other = compared(draws, (Laplace, LogNorm)), compared(draws, (LogNorm, Laplace))
    for name in ("mean_log_ratio", "z", "z_independent"):
        assert row[name] == pytest.approx(-other[name], rel=1e-12)
    assert (row["p"], row["better"]) == (pytest.approx(other["p"], rel=1e-12), other["better"])
    scaled = compared(draws * 2.0**-40, (Laplace, LogNorm))
    assert scaled["z"] == pytest.approx(row["z"], rel=1e-9)


def lognormal(rng, n, correlation=0.0):
    """Log-normal magnitudes whose logarithms follow an AR(1) process; signs are random."""
    noise = rng.standard_normal(n + 500)
    scale = math.sqrt(1 - correlation**2)
    logs = signal.lfilter([scale], [1.0, -correlation], noise)[500:]
    return np.exp(logs) * rng.choice([-1.0, 1.0], n)


def null_rows(replicates, n, correlation, **settings):
    rng = np.random.default_rng(11)
    return [
        compared(lognormal(rng, n, correlation), MIRRORED, **settings) for _ in range(replicates)
    ]


def p_independent(rows):
    return np.array([2 * stats.norm.sf(abs(row["z_independent"])) for row in rows])


@pytest.mark.slow
def test_p_is_uniform_if_both_families_are_equally_wrong():
    rows = null_rows(300, 2_000, 0.0)
    p = np.array([row["p"] for row in rows])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.kstest(p_independent(rows), "uniform").pvalue > 0.01
    assert 0.02 < (p < 0.05).mean() < 0.08
    better = [row["better"] for row in rows]
    assert better.count("laplace") + better.count("inverse-exponential") == (p < 0.05).sum()


@pytest.mark.slow
def test_correlated_neighbours_fool_the_plain_test_and_not_the_blocks():
    rows = null_rows(150, 40_000, 0.95)
    p = np.array([row["p"] for row in rows])
    assert (p_independent(rows) < 0.05).mean() > 0.4
    assert 0.01 < (p < 0.05).mean() < 0.1
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.median([row["inflation"] for row in rows]) > 4


def test_repeated_neighbours_change_no_z():
    """Each element ten times over tells nothing new: z stays, z_independent grows by √10."""
    rng = np.random.default_rng(5)
    values = once_bfloat16(rng.laplace(size=20_000))
    few = compared(values, (Laplace, LogNorm), correction="none")
    many = compared(np.repeat(values, 10), (Laplace, LogNorm), correction="none")
    assert many["mean_log_ratio"] == pytest.approx(few["mean_log_ratio"], rel=1e-9)
    assert many["z"] == pytest.approx(few["z"], rel=1e-9)
    ratio = many["z_independent"] / few["z_independent"]
    assert ratio == pytest.approx(math.sqrt(10), rel=1e-9)
    assert many["inflation"] == pytest.approx(10 * few["inflation"], rel=1e-9)


def test_the_size_of_the_difference_does_not_grow_with_n_but_z_does():
    rng = np.random.default_rng(7)
    rows = [compared(rng.laplace(size=n), (Laplace, HypSecant)) for n in (100_000, 2_000_000)]
    assert rows[1]["mean_log_ratio"] == pytest.approx(rows[0]["mean_log_ratio"], rel=0.2)
    assert rows[1]["z"] > 3 * rows[0]["z"]
    assert rows[1]["better"] == "laplace"


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        (Laplace, DGamma, "nested"),
        (GenNorm, Laplace, "nested"),
        (DWeibull, Laplace, "nested"),
        (Normal, GenNorm, "nested"),
        (Normal, T, "nested"),
        (DGamma, DWeibull, "overlapping"),
        (T, GenNorm, "overlapping"),
        (Laplace, Normal, "non-nested"),
        (LogNorm, DGamma, "non-nested"),
    ],
)
def test_relations_are_those_of_the_special_cases(first, second, relation):
    assert relation_of(first, second) == relation
    assert relation_of(second, first) == relation


@pytest.mark.parametrize(
    ("family", "case", "shape"),
    [
        (DGamma, Laplace, 1.0),
        (DWeibull, Laplace, 1.0),
        (GenNorm, Laplace, 1.0),
        (family("dgenpareto"), Laplace, 0.0),
        (GenNorm, Normal, 2.0),
        (T, Normal, 1e9),
    ],
)
def test_a_special_case_is_the_family_at_a_shape(family, case, shape):
    assert case.name in family.special_cases
    law = family(shape, 1.5)
    scale = 1.5 / math.sqrt(2) if (family, case) == (GenNorm, Normal) else 1.5
    x = np.linspace(0.1, 6, 50)
    np.testing.assert_allclose(law.logpdf(x), case(scale).logpdf(x), rtol=1e-6)


@pytest.mark.slow
def test_nested_families_get_the_likelihood_ratio_and_no_z():
    rng = np.random.default_rng(2)
    rows = [compared(rng.laplace(size=2_000), (Laplace, GenNorm)) for _ in range(300)]
    p = np.array([row["p"] for row in rows])
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert all(math.isnan(row["z"]) and math.isnan(row["z_independent"]) for row in rows)
    assert {row["test"] for row in rows} == {"chi-squared"}
    assert {row["better"] for row in rows} == {"cannot tell", "gennorm"}
    wrong = compared(rng.normal(size=2_000), (GenNorm, Laplace))
    assert (wrong["better"], wrong["relation"]) == ("gennorm", "nested")
    assert wrong["p"] < 1e-6
    assert "z has no normal limit" in wrong["notes"]


def test_the_likelihood_ratio_is_chi_squared_of_one_parameter(draws):
    laws = [Laplace.fit(draws), GenNorm.fit(draws)]
    gain = 2 * float((laws[1].logpdf(draws) - laws[0].logpdf(draws)).sum())
    row = compared(draws, (Laplace, GenNorm))
    assert row["p"] == pytest.approx(stats.chi2(1).sf(gain / max(row["inflation"], 1)), rel=1e-6)


@pytest.mark.parametrize("families", [("normal", "scipy:norm"), (DGamma, DWeibull)])
def test_distributions_that_are_too_alike_cannot_be_told_apart(families):
    rng = np.random.default_rng(1)
    values = rng.laplace(size=5_000) if families[0] is DGamma else rng.normal(size=5_000)
    row = compared(values, families)
    assert (row["better"], row["test"]) == ("cannot tell", "none")
    assert math.isnan(row["z"])
    assert "too alike" in row["notes"]


def test_a_special_case_with_as_many_parameters_is_no_nested_pair():
    @dataclass(frozen=True)
    class Declares(HypSecant):
        special_cases = ("laplace",)

    row = compared(np.random.default_rng(0).laplace(size=50_000), (Declares, Laplace))
    assert (row["relation"], row["better"], row["test"]) == ("overlapping", "laplace", "vuong")


def test_a_distribution_that_ends_before_the_data_loses():
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 200_000), [9.0]])
    row = compared(values, ("scipy:uniform", "laplace"))
    assert row["mean_log_ratio"] == -math.inf
    assert (row["better"], row["test"]) == ("laplace", "none")
    assert row["notes"] == "scipy:uniform ends before the largest magnitude"
