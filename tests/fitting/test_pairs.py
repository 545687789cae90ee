"""Pairs of families on runs, gradients and Summaries, and in the command."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.families import DGamma, Laplace, Normal, T
from gradstats.fitting.pairs import compare_distributions, pair_table
from gradstats.fitting.vuong import Blocks, compare
from gradstats.summary import summarize, summarize_segments

FAMILIES = ("laplace", "normal", "t")
NUMBERS = ["mean_log_ratio", "z", "p", "z_independent", "inflation"]


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


def test_one_row_per_step_group_and_pair_in_the_order_of_the_families(run):
    table = compare_distributions(run, families=FAMILIES, by="module-type")
    assert len(table) == 3 * 2 * 3
    assert set(table["group"]) == {"Embedding", "Linear"}
    first = table[(table["step"] == 100) & (table["group"] == "Linear")]
    pairs = list(zip(first["first"], first["second"], strict=True))
    assert pairs == [("laplace", "normal"), ("laplace", "t"), ("normal", "t")]
    assert (table["status"] == "ok").all()


def test_a_row_of_a_run_is_that_of_its_gradient(run):
    table = compare_distributions(run, families=FAMILIES, blocks=20)
    _, grad = run.gradient(1)
    alone = compare_distributions(grad, families=FAMILIES, blocks=20)
    rows = table[table["step"] == 100].reset_index(drop=True)
    pandas.testing.assert_frame_equal(rows[NUMBERS], alone[NUMBERS])
    assert set(alone["step"]) == {0}
    assert set(alone["group"]) == {"model"}
    bounds = np.linspace(0, grad.numel(), 21).astype(int)
    blocks = Blocks(summarize(grad), summarize_segments(grad, bounds))
    expected = compare(Laplace.fit(grad), Normal.fit(grad), blocks, correction="bic")
    assert rows["z"][0] == expected.z


def test_the_mean_log_ratio_is_that_of_the_fits(run):
    table = compare_distributions(run, families=("dgamma", "laplace"))
    fits = gradstats.fit(run, families=("dgamma", "laplace"), ratios=0.1)
    likelihood = fits.pivot_table("log_likelihood", "step", "family")
    differences = likelihood["dgamma"] - likelihood["laplace"]
    np.testing.assert_allclose(table["mean_log_ratio"], differences, rtol=1e-12, atol=1e-15)


def test_rows_are_evenly_spaced_and_tracks_can_be_read(run):
    table = compare_distributions(run, families=FAMILIES, kind="track", most_rows=4)
    assert list(dict.fromkeys(table["step"])) == [0, 73, 146, 219]
    assert (table["n"] <= 2_000).all()


def test_a_path_and_tasks_give_the_same_table(run, small_run):
    table = compare_distributions(run, families=FAMILIES)
    done = []
    with ThreadPoolExecutor(2) as executor:
        other = compare_distributions(
            small_run,
            families=FAMILIES,
            executor=executor,
            progress=lambda *counts: done.append(counts),
        )
    pandas.testing.assert_frame_equal(other, table)
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_what_has_no_order_has_no_z_and_says_so():
    rng = np.random.default_rng(0)
    grad = rng.laplace(size=5_000).astype(np.float32)
    table = compare_distributions(summarize(grad), families=FAMILIES)
    whole = compare_distributions(grad, families=FAMILIES)
    assert table["z"].isna().all()
    assert table["p"].isna().all()
    assert (table["blocks"] == 0).all()
    assert set(table["better"]) == {"cannot tell"}
    assert set(table["test"]) == {"none"}
    assert table["notes"].str.contains("counts have no order of elements").all()
    np.testing.assert_allclose(table["mean_log_ratio"], whole["mean_log_ratio"], rtol=1e-12)
    np.testing.assert_allclose(table["z_independent"][0], whole["z_independent"][0], rtol=1e-12)


def test_a_run_of_summaries_has_log_ratios_alone(tmp_path):
    rng = np.random.default_rng(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    settings = {"summary": True, "full": None, "track": 0}
    with gradstats.capture(layer, optimizer, tmp_path / "s.zarr", **settings):
        layer.weight.grad = torch.from_numpy(rng.laplace(size=(64, 64)).astype(np.float32))
        optimizer.step()
    table = compare_distributions(tmp_path / "s.zarr", families=FAMILIES)
    assert (table["mean_log_ratio"] != 0).all()
    assert table["z"].isna().all()
    assert table["notes"].str.contains("no order").all()


@pytest.mark.parametrize(
    "data",
    [
        [torch.arange(1.0, 100.0), torch.arange(-50.0, 0.0)],
        {"a": torch.arange(1.0, 100.0), "b": None, "c": torch.arange(-50.0, 0.0)},
        np.concatenate([np.arange(1.0, 100.0), np.arange(-50.0, 0.0)]).astype(np.float32),
    ],
)
def test_gradients_come_in_any_form(data):
    (row,) = compare_distributions(data, families=("laplace", "normal")).to_dict("records")
    assert row["n"] == 149
    assert row["blocks"] == 74
    assert row["block_length"] == pytest.approx(149 / 74)


def test_zeros_and_what_is_not_finite_are_left_out():
    rng = np.random.default_rng(0)
    grad = np.zeros(10_000, np.float32)
    grad[:2_000] = rng.laplace(size=2_000)
    grad[5] = np.nan
    (row,) = compare_distributions(grad, families=("laplace", "normal")).to_dict("records")
    assert row["n"] == 1_999
    assert row["blocks"] == 20  # of 100, those that hold an element
    assert math.isfinite(row["z"])


@pytest.mark.parametrize("grad", [np.zeros(100), np.zeros(0), np.ones(3)])
def test_a_fit_that_fails_is_a_status(grad):
    table = compare_distributions(grad, families=("dgamma", "laplace"))
    assert table["status"].str.startswith("cannot fit dgamma: ").all()
    assert table["mean_log_ratio"].isna().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": "laplace"}, "families must name at least two, got laplace"),
        ({"correction": "schwarz"}, "correction must be one of none, aic, bic, got 'schwarz'"),
        ({"blocks": 1}, "blocks must be a whole number from 2, got 1"),
        ({"most_rows": 0}, "most_rows must be a whole number from 1, got 0"),
        ({"families": "laplace,scipy:norme"}, r"did you mean scipy:norm\?"),
        ({"kind": "whole"}, "kind must be one of full, track, got 'whole'"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        compare_distributions(np.ones(5), **settings)
    with pytest.raises(TypeError, match="compare_distributions has no setting 'family'"):
        compare_distributions(np.ones(5), family="t")


def test_the_command_adds_a_table_of_pairs(call, small_run, tmp_path):
    words = ("fit", small_run, "--families", "laplace,normal,t", "--ratios", "0.1", "--pairs")
    code, shown, err = call(*words, "--out", tmp_path / "r", "--json")
    assert (code, err) == (0, f"tables: {tmp_path / 'r'}")
    written = pandas.read_parquet(tmp_path / "r" / "pairs.parquet")
    expected = compare_distributions(gradstats.open(small_run), families=FAMILIES)
    pandas.testing.assert_frame_equal(written, expected)
    pairs = json.loads(shown)["pairs"]
    names = [(each["first"], each["second"]) for each in pairs]
    assert names == [("laplace", "normal"), ("laplace", "t"), ("normal", "t")]
    medians = expected.groupby(["first", "second"], sort=False)["mean_log_ratio"].median()
    assert [each["mean_log_ratio"] for each in pairs] == pytest.approx(list(medians))
    code, shown, _ = call(*words, "--out", tmp_path / "r")
    assert code == 0
    assert re.search(r"Pairs: mean ln\(first / second density\), nats per element", shown)


@pytest.mark.parametrize("other", [("--axis", "steps"), ("--compensated", "topk(0.1)")])
def test_pairs_are_of_whole_gradients(call, small_run, other):
    code, _, err = call("fit", small_run, "--pairs", *other)
    assert code == 2
    assert "must come without" in err
    assert "pairs" in err


def test_medians_and_shares_of_pairs():
    rows = [
        {"group": "g", "first": "a", "second": "b", "mean_log_ratio": m, "z": z, "p": p}
        | {"inflation": 2.0, "better": better, "status": "ok"}
        for m, z, p, better in (
            (0.1, 3.0, 0.01, "a"),
            (0.3, 1.0, 0.3, "cannot tell"),
            (-0.1, -4.0, 0.001, "b"),
            (0.2, 5.0, 0.0, "a"),
        )
    ]
    (line,) = pair_table(pandas.DataFrame(rows)).to_dict("records")
    assert line["mean_log_ratio"] == pytest.approx(0.15)
    assert (line["first_better"], line["second_better"]) == (0.5, 0.25)
    assert line["z"] == 2.0


def test_families_may_be_classes():
    grad = np.random.default_rng(0).standard_t(3, 4_000)
    table = compare_distributions(grad, families=(DGamma, T))
    assert list(table["first"]) == ["dgamma"]
    assert table["mean_log_ratio"].item() < 0
