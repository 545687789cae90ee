"""The verbs for one table each: the same rows as the tables of a fit and of the report."""

import pandas
import pytest

import gradstats
from gradstats.fitting.columns import RankRow, ReuseRow, SeriesRow, StructureRow, ThresholdRow
from gradstats.fitting.run import fit_tables
from gradstats.fitting.settings import FitSettings
from gradstats.runs.tables import names

ASKED = {"ratios": [0.1, 0.02]}
CASES = {
    "whole": {},
    "parts": {"by": "parameter"},
    "tracked": {"kind": "track"},
    "compensated": {"compensated": "lowpass(topk(0.1))"},
}
VERBS = {"thresholds": "sidco_thresholds", "structure": "structure", "reuse": "threshold_reuse"}
ROWS = {"thresholds": ThresholdRow, "structure": StructureRow, "reuse": ReuseRow}


@pytest.fixture(scope="module")
def runs(small_run):
    every = gradstats.open(small_run)
    few = gradstats.open(small_run, steps=(0, 12, 1))
    return {"whole": every, "parts": every, "tracked": few, "compensated": few}


@pytest.mark.parametrize("case", CASES)
def test_each_table_is_that_of_a_fit(runs, case):
    settings = {**ASKED, **CASES[case]}
    tables = fit_tables(runs[case], FitSettings(families="laplace", **settings))
    for name, verb in VERBS.items():
        table = getattr(gradstats, verb)(runs[case], **settings)
        pandas.testing.assert_frame_equal(table, tables[name][list(table.columns)])
        assert set(names(ROWS[name])) <= set(table.columns)


def test_one_ratio_needs_no_list_and_what_is_wrong_is_named(runs):
    for verb in VERBS.values():
        of = getattr(gradstats, verb)
        pandas.testing.assert_frame_equal(
            of(runs["whole"], ratios=0.1), of(runs["whole"], ratios=[0.1])
        )
        with pytest.raises(ValueError, match="ratios must lie in"):
            of(runs["whole"], ratios=2)
        with pytest.raises(ValueError, match="by must be one of model, module-type, parameter"):
            of(runs["whole"], by="nothing like it")
        with pytest.raises(ValueError, match="kind must be one of full, track"):
            of(runs["whole"], kind="whole")


def test_a_run_may_be_given_by_its_path(small_run):
    for verb in (*VERBS.values(), "ranks", "series"):
        of = getattr(gradstats, verb)
        pandas.testing.assert_frame_equal(of(str(small_run)), of(gradstats.open(small_run)))
    table = gradstats.timings(small_run, "topk", ratios=0.1)
    assert table["compressor"].tolist() == ["topk(0.1)"] * 2


def test_ranks_and_series_are_tables_with_their_declared_columns(runs):
    assert list(gradstats.ranks(runs["whole"], most_rows=1).columns) == names(RankRow)
    series = gradstats.series(runs["tracked"])
    assert set(series.columns) == set(names(SeriesRow))
    pandas.testing.assert_frame_equal(series, gradstats.fit(runs["tracked"], axis="steps"))


def test_a_threshold_is_followed_by_hand(run_writer, tmp_path):
    """The gradient doubles at step 3: a threshold of before keeps too many from then on."""
    import torch

    base = torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    grads = {step: {"w": base * (2 if step > 2 else 1)} for step in range(5)}
    run = gradstats.open(run_writer(tmp_path / "doubles.zarr", grads))
    table = gradstats.threshold_reuse(run, ratios=0.1).set_index("step")
    assert table["ended"].to_dict() == {0: 3, 1: 3, 2: 3, 3: -1, 4: -1}
    assert table["reusable_steps"].to_dict() == {0: 2, 1: 1, 2: 0, 3: 1, 4: 0}
    exact = float(base.abs().sort(descending=True).values[399])
    assert table.loc[0, "threshold"] == pytest.approx(exact, rel=0.01)
