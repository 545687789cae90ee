"""Rows of fits and thresholds: nothing is dropped, and every number has an oracle elsewhere."""

import math

import numpy as np
import pytest
import torch

from gradstats.families import FAMILIES, DGamma, DGenPareto, Laplace, LogNorm, family
from gradstats.fitting.goodness import ks_distance, log_likelihood, tail_error
from gradstats.fitting.rows import fit_rows, threshold_rows
from gradstats.ratios import kept_count
from gradstats.summary.summarizing import summarize
from gradstats.thresholds import VARIANTS, sidco_threshold

RATIOS = (0.1, 0.01)
MEASURED = ("shape", "scale", "shape_se", "scale_se", "ks", "anderson_darling", "aic", "bic")
MEASURED += ("wasserstein_1", "wasserstein_2", "log_likelihood", "threshold", "khat_over_k")
MEASURED += ("next_log_likelihood", "next_log_likelihood_rescaled", "bootstrap_p")
COLUMNS = {*MEASURED, "family", "method", "target_ratio", "axis", "mean", "sign_asymmetry"}
COLUMNS |= {"n", "zeros", "nonfinite", "notes", "reference", "status"}
SHAPED = {family.name for family in FAMILIES if family.bounds}


@pytest.fixture(scope="module")
def grad():
    rng = np.random.default_rng(5)
    values = (rng.gamma(0.6, 1e-3, 20_000) * rng.choice([-1, 1], 20_000)).astype(np.float32)
    values[:2_000] = 0
    values[2_000:2_003] = (np.nan, np.inf, -np.inf)
    return torch.from_numpy(values)


@pytest.mark.parametrize("method", ["mle", "moments"])
def test_a_row_a_family_and_ratio_with_every_column(grad, method):
    summary = summarize(grad)
    rows = list(fit_rows(summary, ratios=RATIOS, method=method))
    assert [(row["family"], row["target_ratio"]) for row in rows] == [
        (family.name, ratio) for family in FAMILIES for ratio in RATIOS
    ]
    for row in rows:
        assert set(row) == COLUMNS
        assert (row["n"], row["zeros"], row["nonfinite"]) == (20_000, 2_000, 3)
        assert (row["method"], row["status"]) == (method, "ok")


def test_rows_hold_what_the_law_and_its_scores_are(grad):
    summary = summarize(grad)
    (row,) = fit_rows(summary, families=[DGamma], ratios=[0.01])
    law = DGamma.fit(grad)
    assert (row["shape"], row["scale"]) == (law.shape, law.scale)
    assert row["ks"] == ks_distance(law, summary)
    assert row["log_likelihood"] == log_likelihood(law, summary)
    assert (row["threshold"], row["khat_over_k"]) == tail_error(law, summary, 0.01)
    (laplace,) = fit_rows(summary, families=[Laplace], ratios=[0.01])
    assert math.isnan(laplace["shape"])


@pytest.mark.parametrize(
    ("values", "failing"),
    [
        ([], {family.name for family in FAMILIES}),
        ([0.0] * 50, {family.name for family in FAMILIES}),
        ([math.nan, math.inf], {family.name for family in FAMILIES}),
        ([0.5] * 50, SHAPED),
        ([-0.5], SHAPED),
        ([1.0, 2.0, 4.0, -8.0] * 9, SHAPED),
    ],
    ids=["empty", "zeros", "not finite", "constant", "one element", "few values"],
)
def test_a_fit_that_fails_is_a_row_with_its_reason(values, failing):
    rows = list(fit_rows(summarize(torch.tensor(values)), ratios=RATIOS))
    assert len(rows) == len(FAMILIES) * len(RATIOS)
    failed = [row for row in rows if row["status"] != "ok"]
    assert {row["family"] for row in failed} == failing
    for row in failed:
        assert set(row) == COLUMNS
        assert f"cannot fit {row['family']}" in row["status"]
        assert all(math.isnan(row[name]) for name in MEASURED)
        assert row["n"] == len(values)


def test_an_unknown_method_is_an_error_and_not_a_row(grad):
    with pytest.raises(ValueError, match=r"method .*got 'guess'"):
        list(fit_rows(summarize(grad), method="guess"))


def test_a_threshold_row_a_variant_stages_and_ratio(grad):
    summary = summarize(grad)
    rows = list(threshold_rows(summary, ratios=RATIOS, stages=(1, 3)))
    assert [(row["variant"], row["stages"], row["target_ratio"]) for row in rows] == [
        (variant, stages, ratio) for variant in VARIANTS for stages in (1, 3) for ratio in RATIOS
    ]
    magnitudes = grad[grad.isfinite()].abs().double()
    for row in rows:
        found = sidco_threshold(
            grad, row["target_ratio"], variant=row["variant"], stages=row["stages"]
        )
        assert (row["threshold"], row["stages_used"]) == (found.value, found.stages)
        assert row["guards"] == "; ".join(found.guards)
        k = kept_count(20_000, row["target_ratio"])
        counted = int((magnitudes > found.value).sum())
        cut = int(((magnitudes - found.value).abs() <= found.value / 128).sum())
        assert row["khat_over_k"] == pytest.approx(counted / k, abs=(cut + 1e-6) / k)


def test_more_stages_come_closer_where_one_is_far_off():
    rng = np.random.default_rng(6)
    summary = summarize(rng.standard_t(3, 200_000).astype(np.float32))
    misses = {
        row["stages"]: abs(math.log(row["khat_over_k"]))
        for row in threshold_rows(summary, ratios=[0.001], stages=(1, 3))
        if row["variant"] == "e"
    }
    assert misses[3] < misses[1] / 2


@pytest.mark.parametrize("values", [[], [0.0] * 9, [math.nan] * 9], ids=["empty", "zeros", "nan"])
def test_nothing_to_fit_gives_thresholds_that_keep_nothing_and_say_why(values):
    rows = list(threshold_rows(summarize(torch.tensor(values)), ratios=[0.1]))
    assert len(rows) == 9
    assert all(row["guards"] for row in rows)
    assert {row["khat_over_k"] for row in rows if values} <= {0.0}
    assert all(math.isnan(row["khat_over_k"]) for row in rows if not values)


def test_ratios_outside_their_range_are_named(grad):
    for rows in (fit_rows, threshold_rows):
        with pytest.raises(ValueError, match=r"got 1\.5"):
            list(rows(summarize(grad), ratios=[0.1, 1.5]))


ENDS = {  # data whose best shape lies beyond an end of the search
    ("dgenpareto", -0.5): np.linspace(1.0, 2.0, 400),
    ("dgenpareto", 5.0): np.exp(np.linspace(-300.0, 300.0, 400)),
    ("gennorm", 0.1): np.exp(np.linspace(-300.0, 300.0, 400)),
    ("gennorm", 20.0): np.linspace(1e-3, 2.0, 400),
    ("dweibull", 0.1): np.exp(np.linspace(-300.0, 300.0, 400)),
    ("dweibull", 20.0): np.linspace(1.0, 1.15, 400),
    ("t", 0.2): np.exp(np.linspace(-300.0, 300.0, 400)),
    ("t", 200.0): np.linspace(1e-3, 2.0, 400),
}


def test_every_end_of_every_search_is_among_them():
    ends = {
        (law.name, end)
        for law in FAMILIES
        for end in law.bounds.get("shape", ())
        if math.isfinite(end) and (end or "shape" not in law.positive)
    }
    assert set(ENDS) == ends


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_a_search_that_ends_at_its_end_says_so_in_the_row(name, end):
    (row,) = fit_rows(summarize(ENDS[name, end]), families=[family(name)], ratios=[0.1])
    assert row["status"] == "ok"
    assert row["shape"] == pytest.approx(end, rel=1e-4)
    assert "shape is at the bound of its search" in row["notes"]
    assert math.isnan(row["shape_se"])


def test_moments_beyond_the_search_say_so_in_the_row():
    values = np.linspace(1.0, 1.1, 400)
    (row,) = fit_rows(summarize(values), families=[DGenPareto], ratios=[0.1], method="moments")
    assert row["shape"] < -1
    assert "shape is at the bound of its search" in row["notes"]


def test_a_distribution_that_has_its_moments_is_not_said_to_lack_them():
    """A log-normal has every moment, also where they leave float64."""
    values = np.exp(np.linspace(-300.0, 300.0, 400))
    (row,) = fit_rows(summarize(values), families=[LogNorm], ratios=[0.1])
    assert row["wasserstein_2"] == math.inf
    assert "wasserstein_2: the distribution has a variance above the range" in row["notes"]
    assert "has no" not in row["notes"]


def test_a_bootstrap_that_fails_leaves_the_fit():
    """A subsample of few distinct magnitudes cannot be fitted; the whole can."""
    values = np.concatenate([np.ones(400_000), np.linspace(2.0, 9.0, 12)]).astype(np.float32)
    (row,) = fit_rows(summarize(values), families=[DGamma], ratios=[0.1], bootstrap=3)
    assert row["status"] == "ok"
    assert math.isnan(row["bootstrap_p"])
    assert "bootstrap_p: of the subsample: cannot fit dgamma" in row["notes"]
