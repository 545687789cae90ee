"""`--json`: stdout is one strict JSON document, and nothing else."""

import json
import math

import numpy as np
import pandas
import pytest
import torch

from gradstats.cli.json_output import plain


def strict(text):
    def refused(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refused)


def test_info(call, small_run):
    code, shown, err = call("info", small_run, "--json")
    assert (code, err) == (0, "")
    document = strict(shown)
    rows = {(each["worker"], each["kind"]): each["rows"] for each in document["rows"]}
    assert rows == {(0, "full"): 3, (0, "track"): 220}
    assert document["rows"][0]["points"] == ["local"]
    assert document["provenance"]["model"] == "Tiny"
    (stage,) = document["stages"]
    shapes = {each["name"]: each["shape"] for each in stage["parameters"]}
    assert shapes["embed.weight"] == [60, 48]
    assert stage["workers"] == [0]


def test_fit(call, small_run, tmp_path):
    words = ("fit", small_run, "--families", "laplace,dgamma", "--ratios", "0.1")
    code, shown, err = call(*words, "--steps", "0:150", "--out", tmp_path / "o", "--json")
    assert (code, err) == (0, f"tables: {tmp_path / 'o'}")
    document = strict(shown)
    assert document["folder"] == str(tmp_path / "o")
    assert {each["family"] for each in document["laws"]["model"]} == {"laplace", "dgamma"}
    assert document["thresholds"][0]["variant"]
    assert document["failed"] == {}


def test_fit_over_steps(call, small_run, tmp_path):
    words = ("fit", small_run, "--axis", "steps", "--parameters", "fc.bias")
    code, shown, _ = call(*words, "--out", tmp_path / "o", "--json")
    assert code == 0
    (line,) = strict(shown)["parameters"]
    assert line["parameter"] == "fc.bias"
    assert line["variance"] > 0


def test_a_fit_that_fails_has_no_numbers_but_is_still_json(call, run_writer, tmp_path):
    path = run_writer(tmp_path / "z.zarr", {0: {"w": torch.zeros(2_000)}})
    code, shown, err = call("fit", path, "--ratios", "0.1", "--json")
    assert code == 0
    assert sum(strict(shown)["failed"].values()) == 8
    assert "warning: 8 of 8 rows could not be fitted" in err


def test_replay(call, small_run, tmp_path):
    words = ("replay", small_run, "--compressors", "topk,bf16", "--ratios", "0.1")
    words += ("--steps", "0:20", "--feedback", "none")
    code, shown, _ = call(*words, "--out", tmp_path / "o", "--json")
    assert code == 0
    document = strict(shown)
    methods = {each["compressor"]: each for each in document["methods"]}
    assert set(methods) == {"topk(0.1)", "bf16"}
    assert methods["topk(0.1)"]["khat_over_k"] == pytest.approx(1, abs=0.01)
    assert methods["topk(0.1)"]["residual_ratio"] is None  # no feedback
    assert document["factorised"] is None


def test_numbers_that_json_lacks_become_null():
    table = pandas.DataFrame({"a": [1.5, math.nan], 0.1: [np.inf, 2.0], "n": [1, 2]})
    assert plain({"t": table, "v": np.float32(0.5), "x": np.array([1.0, np.nan])}) == {
        "t": [{"a": 1.5, "0.1": None, "n": 1}, {"a": None, "0.1": 2.0, "n": 2}],
        "v": 0.5,
        "x": [1.0, None],
    }
