"""Ranking laws: by what carries over to the next step, and by what thresholds keep."""

import math

import numpy as np
import pandas
import pytest

from gradstats.fitting.ranking import (
    best_by_group,
    best_distribution,
    reuse_table,
    scores,
    winners,
)

RATIOS = (0.1, 0.01)


def fit_row(step, family, ratio, nats, khat_over_k, **other):
    named = {"step": step, "group": "model", "family": family, "target_ratio": ratio, "n": 10_000}
    named |= {"next_log_likelihood_rescaled": nats, "log_likelihood": -1.0, "ks": 0.1}
    named |= dict.fromkeys(("anderson_darling", "wasserstein_1", "wasserstein_2"), 0.2)
    named |= {"shape": 1.0 + step, "shape_se": 0.01, "scale": 2.0, "status": "ok"}
    return {**named, "khat_over_k": khat_over_k, **other}


def table(laws, steps=(0, 1, 2)):
    """laws: family -> (nats on the next step, k̂/k)."""
    return pandas.DataFrame(
        fit_row(step, family, ratio, nats, khat)
        for step in steps
        for family, (nats, khat) in laws.items()
        for ratio in RATIOS
    )


def test_a_law_is_scored_by_what_it_loses_and_by_what_it_keeps():
    found = scores(table({"a": (5.0, 2.0), "b": (4.5, 1.0)})).set_index(["step", "family"])
    assert found.loc[(0, "a"), "transfer"] == 0
    assert found.loc[(0, "b"), "transfer"] == 0.5
    misses = [abs(math.log((2 * k + 0.5) / (k + 0.5))) for k in (1000, 100)]
    assert found.loc[(0, "a"), "tail"] == pytest.approx(np.mean(misses))  # of two, the median
    assert found.loc[(0, "b"), "tail"] == 0
    assert found["rank"].tolist() == [1.5] * 6  # each is first once


def test_equals_are_ordered_by_transfer_and_the_best_of_both_wins():
    laws = table({"a": (4.5, 1.0), "b": (5.0, 2.0), "c": (4.0, 3.0)})
    assert winners(laws)["family"].tolist() == ["b"] * 3
    assert best_distribution(laws)["family"].tolist() == ["b", "a", "c"]
    laws = table({"a": (4.5, 1.5), "b": (5.0, 1.1), "c": (4.0, 3.0)})
    assert best_distribution(laws)["wins"].tolist() == [1.0, 0.0, 0.0]


def test_without_a_next_step_the_step_itself_counts():
    rows = [fit_row(0, "a", 0.1, math.nan, 1.0), fit_row(0, "b", 0.1, math.nan, 1.0)]
    rows[1]["log_likelihood"] = -1.25
    assert scores(pandas.DataFrame(rows))["transfer"].tolist() == [0.0, 0.25]


def test_a_law_that_ends_before_the_data_comes_last():
    laws = table({"a": (-math.inf, 1.0), "b": (5.0, 1.0), "c": (4.0, 1.0)})
    assert best_distribution(laws)["family"].tolist()[0] == "b"
    assert best_distribution(laws).set_index("family").loc["a", "transfer"] == math.inf


def test_what_steps_differ_by_stands_beside_the_standard_error():
    line = best_distribution(table({"a": (5.0, 1.0)})).iloc[0]
    assert (line["shape"], line["shape_se"], line["shape_spread"]) == (2.0, 0.01, 1.0)
    assert (line[0.1], line[0.01]) == (1.0, 1.0)


def test_failures_have_no_rank_and_nothing_fitted_is_an_empty_table():
    laws = table({"a": (5.0, 1.0), "b": (6.0, 1.0)})
    laws.loc[laws["family"] == "b", "status"] = "cannot fit"
    assert best_distribution(laws)["family"].tolist() == ["a"]
    assert len(best_distribution(laws.assign(status="cannot fit"))) == 0
    assert len(best_by_group(laws.assign(status="cannot fit"))) == 0


def test_each_group_has_its_best_distribution():
    laws = table({"a": (5.0, 1.0), "b": (4.0, 2.0)})
    other = table({"a": (4.0, 2.0), "b": (5.0, 1.0)}).assign(group="other")
    best = best_by_group(pandas.concat([laws, other]))
    assert best[["group", "family"]].values.tolist() == [["model", "a"], ["other", "b"]]


def test_reuse_is_a_median_with_the_share_that_still_holds():
    rows = pandas.DataFrame(
        {"group": "model", "target_ratio": 0.1, "step": step, "ended": ended, "reusable_steps": n}
        for step, ended, n in ((0, 9, 8), (10, 12, 1), (20, -1, 30))
    )
    (line,) = reuse_table(rows).to_dict("records")
    assert (line["thresholds"], line["reusable_steps"]) == (3, 8)
    assert line["still_holds"] == pytest.approx(1 / 3)
    assert len(reuse_table(pandas.DataFrame())) == 0
