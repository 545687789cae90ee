"""The script that trains with compressors: a quick run does all that the page tells."""

import json
from pathlib import Path

import pytest

from tests.processes import run_script

FOLDER = Path(__file__).parents[2] / "analyses/09_training"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree"),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("training") / "report.json"
    words = [FOLDER / "run.py", "--quick", "--data", out.parent, "--out", out]
    ((code, _, err),) = run_script(words, FOLDER, OMP_NUM_THREADS=1, GRADSTATS_DATA=None)
    assert code == 0, err
    return json.loads(out.read_text())


def test_a_quick_run_trains_times_and_resumes_every_method(quick):
    assert quick["pictures"].startswith("noise")
    found = quick["workers"]["2"]
    assert all(found["resumed"].values())
    assert set(found["timings"]) == {"plain DDP", *found["resumed"]}
    assert set(found["methods"]) == {*found["timings"], "dense, another seed"}
    for name, method in found["methods"].items():
        assert method["rows"][-1]["step"] == quick["steps"]
        assert (method["weights"] == found["methods"]["dense"]["weights"]) == (
            name in ("plain DDP", "dense")
        )


def test_exact_threshold_trains_as_topk_to_the_bit(quick):
    methods = quick["workers"]["2"]["methods"]
    assert methods["ExactThreshold"]["weights"] == methods["Top-k"]["weights"]


def test_the_committed_report_is_of_whole_runs_on_real_data():
    report = json.loads((FOLDER / "report.json").read_text())
    assert report["pictures"].startswith("CIFAR-10")
    for workers in ("2", "4"):
        found = report["workers"][workers]
        assert all(found["resumed"].values())
        dense = found["methods"]["dense"]["loss"]
        for name in ("Top-k", "ExactThreshold", "SIDCo-E", "QSGD, 4 bits", "CO3, fp4"):
            assert found["methods"][name]["loss"] < dense + 0.25, name
