"""Every public verb that takes a run takes its path too, and refuses what is neither by name."""

import inspect
from pathlib import Path

import pandas
import pytest

import gradstats

CALLS = {
    "fit": {"families": "laplace,dgamma", "ratios": "1%"},
    "replay": {"compressors": "topk,bf16", "ratios": "10%"},
    "sidco_thresholds": {"ratios": 0.01},
    "structure": {"ratios": 0.01},
    "threshold_reuse": {"ratios": 0.01, "kind": "track"},
    "ranks": {"most_rows": 1},
    "series": {},
    "factorised_rows": {"most_rows": 1},
    "compare_distributions": {"families": "laplace,normal", "most_rows": 1},
}
MEASURED = ("timings", "report")  # seconds differ, files are written


def test_every_verb_of_a_run_is_tried():
    verbs = {
        name
        for name in gradstats.__all__
        if callable(getattr(gradstats, name)) and not isinstance(getattr(gradstats, name), type)
        if next(iter(inspect.signature(getattr(gradstats, name)).parameters), "") == "run"
    }
    assert verbs | {"compare_distributions"} == {*CALLS, *MEASURED}


@pytest.mark.parametrize("verb", CALLS)
def test_a_path_is_opened(small_run, verb):
    call, settings = getattr(gradstats, verb), CALLS[verb]
    expected = call(gradstats.open(small_run), **settings)
    for path in (str(small_run), Path(small_run)):
        pandas.testing.assert_frame_equal(call(path, **settings), expected)


def test_timings_and_a_report_take_a_path(small_run, tmp_path, undrawn):
    assert set(gradstats.timings(str(small_run), "bf16")["compressor"]) == {"bf16"}
    page = gradstats.report(small_run, out=tmp_path, budget="0", compressors="bf16", ratios=0.1)
    assert page.is_file()


@pytest.mark.parametrize("verb", [*CALLS, *MEASURED])
def test_what_is_no_run_is_refused_by_name(verb):
    if verb == "compare_distributions":  # a list is a gradient there
        return
    settings = {"compressors": "bf16"} if verb in ("replay", "timings") else {}
    with pytest.raises(ValueError, match="run must be an open run or its path, got 3"):
        getattr(gradstats, verb)(3, **settings)
