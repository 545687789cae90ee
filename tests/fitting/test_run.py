"""Fitting a run: rows of every step and group, in a table or in a folder that goes on."""

import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.families import FAMILIES, Laplace
from gradstats.fitting import resumable as fit_folder
from gradstats.fitting.resumable import fit_into
from gradstats.fitting.rows import fit_rows
from gradstats.fitting.run import TABLES, fit_steps, fit_tables
from gradstats.fitting.settings import FitSettings
from gradstats.runs.groups import groups
from tests.processes import Nursery

QUICK = {"families": ("laplace", "dgamma"), "ratios": (0.1, 0.01)}


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


def same(one, other):
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def test_a_fit_is_the_rows_of_every_group_scored_on_the_next_row(run):
    table = gradstats.fit(run, by="module-type", **QUICK)
    assert len(table) == 3 * 2 * 2 * 2
    assert set(table["axis"]) == {"elements"}
    rows = list(groups(run, by="module-type"))
    for found, following in zip(rows, [*rows[1:], None], strict=True):
        for place, group in enumerate(found):
            part = table[(table["step"] == group.step) & (table["group"] == group.name)]
            after = following[place].summary if following else None
            expected = fit_rows(
                group.summary, following=after, families=FAMILIES[:2], ratios=QUICK["ratios"]
            )
            for row, wanted in zip(part.to_dict("records"), expected, strict=True):
                assert all(same(row[name], value) for name, value in wanted.items())
    last = table["step"] == 200
    assert table.loc[last, "next_log_likelihood"].isna().all()
    assert table.loc[~last, "next_log_likelihood"].notna().all()


def test_spread_between_steps_stands_beside_the_standard_errors(run):
    table = gradstats.fit(run, families=["dgamma"], ratios=[0.1])
    assert table["shape_spread"].unique() == pytest.approx([np.std(table["shape"], ddof=1)])
    assert table["scale_spread"].unique() == pytest.approx([np.std(table["scale"], ddof=1)])


@pytest.mark.slow
def test_executors_give_what_one_thread_gives(run):
    expected = gradstats.fit(run, families=[Laplace])
    for executor in (ThreadPoolExecutor(3), ProcessPoolExecutor(2, Nursery().context)):
        with executor:
            table = gradstats.fit(run, families=[Laplace], executor=executor)
        pandas.testing.assert_frame_equal(table, expected)


@pytest.mark.slow
def test_a_dask_cluster_gives_what_one_thread_gives(run):
    distributed = pytest.importorskip("distributed", reason="needs gradstats[dask]")
    expected = gradstats.fit(run, families=[Laplace])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as one,
        distributed.Client(one) as client,
    ):
        table = gradstats.fit(run, families=[Laplace], executor=client.get_executor())
    pandas.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": ["cauchy"]}, "family must be one of .*got 'cauchy'"),
        ({"method": "guess"}, "method must be one of mle, moments, got 'guess'"),
        ({"ratios": [0.1, 2.0]}, r"ratios must lie in \(0, 1\].*got 2.0"),
        ({"by": "layer"}, "by must be .*got 'layer'"),
        ({"compensated": "topk(2)"}, "got 2"),
    ],
)
def test_wrong_settings_are_named(run, settings, message):
    with pytest.raises(ValueError, match=message):
        gradstats.fit(run, **settings)


def test_a_dead_parameter_and_a_missing_row_are_rows_with_a_status(run_writer, tmp_path):
    rng = torch.Generator().manual_seed(0)
    grads = {
        step: {"w": torch.randn(400, generator=rng), "dead": torch.zeros(50), "late": None}
        for step in range(3)
    }
    for step, named in grads.items():
        named["late"] = torch.randn(60, generator=rng)
        if step == 1:
            del named["late"]
    run = gradstats.open(run_writer(tmp_path / "p.zarr", grads))
    table = gradstats.fit(run, by="parameter", families=["laplace"], ratios=[0.1])
    status = {(row["step"], row["group"]): row["status"] for row in table.to_dict("records")}
    assert status[1, "late"] == "no gradient at step 1"
    assert {step for step in range(3) if "no finite non-zero" in status[step, "dead"]} == {0, 1, 2}
    assert sum(value == "ok" for value in status.values()) == 5


@pytest.mark.slow
def test_a_bootstrap_is_corrected_over_the_groups_of_a_step(run):
    table = gradstats.fit(run, by="parameter", families=["laplace"], ratios=[0.1], bootstrap=9)
    for _, rows in table.groupby("step"):
        smallest = rows.loc[rows["bootstrap_p"].idxmin()]
        assert smallest["bootstrap_p_corrected"] == pytest.approx(
            min(1.0, len(rows) * smallest["bootstrap_p"])
        )


def test_compensated_gradients_are_fitted_on_tracked_rows(run):
    settings = FitSettings(compensated="topk(0.1)", families=["laplace"], ratios=[0.1])
    tables = fit_tables(run, FitSettings(**{**vars(settings), "stride": 50}))
    assert tables["fits"]["step"].tolist() == [0, 50, 100, 150, 200]
    scales = tables["fits"]["scale"]
    assert scales.iloc[1] > 1.5 * scales.iloc[0]  # the residual adds up


def test_thresholds_are_followed_over_all_rows(run):
    tables = fit_tables(
        run, FitSettings(families=(Laplace,), ratios=(0.1,), kind="track", stride=44)
    )
    reuse = tables["reuse"]
    assert sorted(reuse["step"]) == [0, 44, 88, 132, 176]
    assert (reuse["reusable_steps"] >= 0).all()
    held = reuse[reuse["ended"] < 0]
    assert (held["last_good"] == 219).all()  # to the end: the small run's law never changes


def interrupted(run, settings, folder, rows):
    """A fit that dies after some rows."""

    def dying(*args, **kwargs):
        yield from islice(fit_steps(*args, **kwargs), rows)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_folder, "fit_steps", dying)
        patch.setattr(fit_folder, "FLUSH_ROWS", 8)
        with pytest.raises(KeyboardInterrupt):
            fit_into(run, settings, folder)


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_where_it_was(small_run, tmp_path, monkeypatch):
    run = gradstats.open(small_run, steps=(0, 40, 1), parameters="fc.*")
    settings = FitSettings(**QUICK, by="parameter", kind="track")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done_at_once = fit_into(run, settings, whole)
    interrupted(run, settings, parts, rows=17)
    firsts = []
    monkeypatch.setattr(
        fit_folder,
        "fit_steps",
        lambda *args, **kwargs: firsts.append(kwargs["first"]) or fit_steps(*args, **kwargs),
    )
    gone_on = fit_into(run, settings, parts)
    assert firsts == [17]
    for name in TABLES:
        one, other = (fitted.table(name) for fitted in (done_at_once, gone_on))
        pandas.testing.assert_frame_equal(one, other)
    name = "fit_by_part.json"
    assert (whole / name).read_text() == (parts / name).read_text()
    assert not (parts / "parts").exists()


def test_other_settings_begin_anew(small_run, tmp_path):
    run = gradstats.open(small_run, steps=(0, 40, 1))
    interrupted(run, FitSettings(**QUICK, kind="track"), tmp_path, rows=20)
    other = FitSettings(families=["normal"], ratios=[0.1], kind="track")
    fits = fit_into(run, other, tmp_path).table("fits")
    assert set(fits["family"]) == {"normal"}
    assert len(fits) == 40


def test_the_axis_is_named_and_steps_are_not_fitted(run):
    assert set(gradstats.fit(run, families=["laplace"], ratios=[0.1])["axis"]) == {"elements"}
    table = gradstats.fit(run, axis="steps")
    assert set(table["axis"]) == {"steps"}
    assert len(table) == 2_000
    with pytest.raises(ValueError, match="axis must be one of elements, steps, got 'time'"):
        gradstats.fit(run, axis="time")
    with pytest.raises(ValueError, match="axis 'steps' must come without families"):
        gradstats.fit(run, axis="steps", families=["laplace"])


@pytest.mark.slow
def test_the_command_writes_both_axes(call, small_run, tmp_path, forked_pools):
    code, shown, err = call("fit", small_run, "--axis", "steps", "--out", tmp_path / "s")
    assert (code, err) == (0, f"tables: {tmp_path / 's'}")
    assert "Elements over 220 steps" in shown
    assert len(pandas.read_parquet(tmp_path / "s" / "series.parquet")) == 2_000
    words = ("fit", small_run, "--families", "laplace", "--ratios", "0.1", "--jobs", "2")
    code, shown, _ = call(*words, "--out", tmp_path / "e")
    assert code == 0
    assert set(pandas.read_parquet(tmp_path / "e" / "ranks.parquet")["status"]) == {"ok"}
    assert len(pandas.read_parquet(tmp_path / "e" / "structure.parquet")) == 3
    for option, value in (("axis", "time"), ("jobs", "0"), ("bootstrap", "-1")):
        code, _, err = call("fit", small_run, f"--{option}", value)
        assert code == 2
        assert f"--{option}" in err or f"{option} must be" in err
        assert value in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": []}, "families must name at least one, got none"),
        ({"ratios": ()}, "ratios must name at least one, got none"),
        ({"ratios": ["x"]}, r"ratios must lie in \(0, 1\], .* got 'x'"),
        ({"bootstrap": 1.5}, r"bootstrap must be a whole number from 0, got 1\.5"),
        ({"stride": 0}, "stride must be a whole number from 1, got 0"),
        ({"families": "none"}, "got 'none'"),
    ],
)
def test_settings_of_a_fit_are_checked_by_name(run, settings, message):
    with pytest.raises(ValueError, match=message):
        gradstats.fit(run, **settings)


def test_one_family_and_one_ratio_need_no_list(run):
    table = gradstats.fit(run, families="laplace", ratios=0.1)
    assert set(table["family"]) == {"laplace"}
    assert set(table["target_ratio"]) == {0.1}
