"""The script that holds speeds against limits: what it measures, and when it calls one worse."""

import json
import sys
from pathlib import Path

import pytest

from tests.processes import run_script

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analyses/14_limits"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree")


@pytest.fixture(scope="module")
def run():
    """Its module, whose names are free again afterwards."""
    before = set(sys.modules)
    sys.path[:0] = [str(FOLDER)]
    import run

    yield run
    for name in set(sys.modules) - before:
        if str(ROOT / "analyses") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "analyses" not in path]


def test_a_ratio_is_worse_beyond_half_as_much_again(run):
    kept = {"a": 1.0, "b": 2.0, "c": 4.0}
    assert run.worse_than(kept, {"a": 1.49, "b": 2.0, "c": 3.0}) == []
    assert run.worse_than(kept, {"a": 1.51, "b": 2.0, "c": 3.0}) == [
        "a must be at most 1.50 times 1.00, got 1.51"
    ]
    assert len(run.worse_than(kept, {"a": 2.0, "b": 4.0, "c": 8.0})) == 3  # too few for a median


def test_what_another_machine_moves_is_not_worse_up_to_twice(run):
    kept = dict.fromkeys("abcde", 1.0)
    assert run.worse_than(kept, dict.fromkeys("abcde", 2.9)) == []
    assert len(run.worse_than(kept, dict.fromkeys("abcde", 3.1))) == 5
    assert len(run.worse_than(kept, dict.fromkeys("abcd", 1.2) | {"e": 2.0})) == 1


def test_cases_that_are_gone_or_no_number_are_worse_and_new_ones_are_not(run):
    assert run.worse_than({"gone": 1.0}, {"new": 9.0}) == [
        "gone must be at most 1.50 times 1.00, got None"
    ]
    assert len(run.worse_than({"a": 1.0}, {"a": float("nan")})) == 1


def test_the_best_of_three_tries_counts(run, monkeypatch):
    tries = iter([{"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 9.0}])
    monkeypatch.setattr(run, "quick_ratios", lambda part, options: next(tries))
    assert run.compared("coding", None, {"a": 1.0, "b": 1.0}) == []
    monkeypatch.setattr(run, "quick_ratios", lambda part, options: {"a": 9.0})
    assert run.compared("coding", None, {"a": 1.0}) == [
        "coding: a must be at most 1.50 times 1.00, got 9.0"
    ]


def test_a_quick_run_fails_where_a_ratio_is_worse(tmp_path):
    out = tmp_path / "report.json"
    words = [FOLDER / "run.py", "--quick", "--part", "memory", "--out", out]
    ((code, _, err),) = run_script([*words, "--keep"], tmp_path)
    assert code == 0, err
    kept = json.loads(out.read_text())
    assert kept["quick"]["memory"].keys() >= {"none", "sign", "mxfp8"}
    kept["quick"]["memory"] = {"none": 0.1}
    out.write_text(json.dumps(kept))
    ((code, _, err),) = run_script(words, tmp_path)
    assert code == 1
    assert "memory: none must be at most 1.50 times 0.10" in err


def test_every_limit_is_in_the_committed_report(run):
    report = json.loads((FOLDER / "report.json").read_text())
    assert set(report["parts"]) == set(run.PARTS)
    hooks = {line["case"] for line in report["parts"]["hook"]}
    assert hooks >= set(run.HOOK)
    assert set(report["quick"]["coding"]) >= {f"{spec}, add from bytes" for spec in run.CODING}
    assert set(report["sizes"]) == {"1", "2"}
