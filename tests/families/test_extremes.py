"""Gradients at the ends of float64: fits follow the unit, and nothing ends with an exception."""

import math

import numpy as np
import pytest
import torch

from gradstats.families import FAMILIES
from gradstats.fitting.compressibility import best_k_error
from gradstats.fitting.goodness import ad_distance, ks_distance, wasserstein
from gradstats.fitting.rows import fit_rows, structure_row, threshold_rows
from gradstats.fitting.series import series_columns
from gradstats.metrics import closeness, cosine, relative_error
from gradstats.summary import summarize
from gradstats.thresholds import VARIANTS, sidco_threshold

HEAVY = np.random.default_rng(0).standard_t(3, 2_000)
EXPONENTS = (-960, -540, -500, 500, 664, 1015)
MIXTURES = {
    "one of 1e200": np.append(HEAVY, 1e200),
    "all 1e308": np.sign(HEAVY) * 1e308,
    "three scales": np.concatenate([HEAVY[:500] * 1e200, HEAVY[500:900] * 1e-200, HEAVY[900:]]),
    "both ends": np.concatenate([HEAVY[:500] * 1e305, HEAVY[500:] * 1e-305, [5e-324]]),
    "one subnormal": np.append(HEAVY, 1e-320),
    "all subnormal": HEAVY * 1e-320,
    "one element": np.array([1e200]),
    "two elements": np.array([1e200, -3e-300]),
    "float32": (HEAVY * 1e37).astype(np.float32),
    "float32 subnormal": (HEAVY * 1e-41).astype(np.float32),
    "float16 subnormal": (HEAVY * 1e-6).astype(np.float16),
}
FREE = ("ks", "anderson_darling", "wasserstein_1", "wasserstein_2", "khat_over_k")


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("method", ["mle", "moments"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_fit_follows_a_power_of_two(family, method, exponent):
    one = family.fit(HEAVY, method=method)
    other = family.fit(np.ldexp(HEAVY, exponent), method=method)
    assert math.ldexp(other.scale, -exponent) == pytest.approx(one.scale, rel=1e-12)
    shapes = [law.parameters.get("shape", 0.0) for law in (other, one)]
    assert shapes[0] == pytest.approx(shapes[1], rel=1e-12)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("method", ["mle", "moments"])
def test_the_scores_of_a_fit_have_no_unit(method, exponent):
    ordinary, other = (
        list(fit_rows(summary, following=summary, method=method))
        for summary in (summarize(HEAVY), summarize(np.ldexp(HEAVY, exponent)))
    )
    for one, row in zip(ordinary, other, strict=True):
        assert row["status"] == "ok"
        for name in FREE:
            assert row[name] == pytest.approx(one[name], rel=1e-9, abs=1e-10), name
        shift = exponent * math.log(2)
        assert row["log_likelihood"] + shift == pytest.approx(one["log_likelihood"], abs=1e-9)
        for name in ("scale_se", "shape_se"):
            assert row[name] == pytest.approx(
                math.ldexp(one[name], exponent) if name == "scale_se" else one[name],
                rel=1e-3,
                nan_ok=True,
            )


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stages", [1, 3])
def test_thresholds_and_errors_follow_a_power_of_two(variant, stages, exponent):
    scaled = np.ldexp(HEAVY, exponent)
    one, other = (
        sidco_threshold(values, 0.01, variant=variant, stages=stages) for values in (HEAVY, scaled)
    )
    assert math.ldexp(other.value, -exponent) == pytest.approx(one.value, rel=1e-12)
    assert other.guards == one.guards
    errors = [best_k_error(summarize(values), 0.01) for values in (HEAVY, scaled)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-12)


@pytest.mark.parametrize("method", ["mle", "moments"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_fitted_or_is_a_row_that_says_why_not(name, method):
    """Numpy's warnings are errors in this suite."""
    summary = summarize(MIXTURES[name])
    for row in fit_rows(summary, following=summary, method=method):
        if row["status"] != "ok":
            assert row["status"].startswith(f"cannot fit {row['family']}: ")
            continue
        assert 0 < row["scale"] < math.inf
        assert math.isfinite(row["log_likelihood"])
        for score in ("anderson_darling", "wasserstein_1", "wasserstein_2"):
            assert math.isfinite(row[score]) or f"{score}: the distribution" in row["notes"]
    assert structure_row(summary)["max_abs"] == np.abs(MIXTURES[name]).max()
    for row in threshold_rows(summary):
        assert row["threshold"] >= 0


def test_the_distances_are_finite_where_a_tail_is_beyond_float64():
    summary = summarize(MIXTURES["three scales"])
    for family in FAMILIES:
        law = family.fit(summary)
        assert 0 < ks_distance(law, summary) <= 1
        assert math.isfinite(ad_distance(law, summary))
        wasserstein(law, summary, 2)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_reconstructions_are_as_close_in_any_unit(exponent):
    g = torch.from_numpy(HEAVY)
    s, e = g.round(), g / 3
    ordinary = closeness(g, s, e)
    moved = [x * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2) for x in (g, s, e)]
    assert closeness(*moved) == pytest.approx(ordinary, rel=1e-12)
    assert relative_error(*moved[:2]) == pytest.approx(relative_error(g, s), rel=1e-12)
    assert cosine(*moved[:2]) == pytest.approx(cosine(g, s), rel=1e-12)


@pytest.mark.parametrize("exponent", [-960, -540, 664, 1005])
def test_columns_over_steps_are_those_of_any_unit(exponent):
    values = HEAVY.reshape(40, 50)
    one = series_columns(values, consecutive=True)
    other = series_columns(np.ldexp(values, exponent), consecutive=True)
    for name in ("snr", "tail_index", "autocorrelation", "zeros", "n"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-12)
    np.testing.assert_allclose(np.ldexp(other["mean"], -exponent), one["mean"], rtol=1e-12)
