"""The script that trains factorised models: a quick run does all that the page tells."""

import json
from pathlib import Path

import pytest

from tests.processes import run_script

FOLDER = Path(__file__).parents[2] / "analyses/10_pufferfish"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree"),
]
METHODS = ["dense", "Pufferfish", "factorised from the start", "PowerSGD, rank 2", "Signum"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("pufferfish") / "report.json"
    words = [FOLDER / "run.py", "--quick", "--data", out.parent, "--out", out]
    ((code, _, err),) = run_script(words, FOLDER, OMP_NUM_THREADS=1, GRADSTATS_DATA=None)
    assert code == 0, err
    return json.loads(out.read_text())


def test_a_quick_run_trains_times_and_ranks(quick):
    for task in ("pictures", "words"):
        found = quick["tasks"][task]
        assert "no real data" in found["data"]
        assert list(found["methods"]) == METHODS
        assert {row["step"] for row in found["grad_ranks"]} <= set(range(4))
        assert found["weight_ranks"]
        kinds = {row["kind"] for row in found["rows"] if row["status"] == "ok"}
        assert kinds == {"bound", "counterfactual"}


def test_bytes_are_those_of_the_parameters(quick):
    """A factorised model sends 4 bytes a parameter, and encodes nothing but a copy."""
    for found in quick["tasks"].values():
        for name in ("dense", "Pufferfish", "factorised from the start"):
            method = found["methods"][name]
            assert method["milliseconds"]["nbytes"] == 4 * method["parameters"][1]
        dense, puffer = (found["methods"][name]["parameters"] for name in METHODS[:2])
        assert puffer[1] < puffer[0] == dense[0] == dense[1]
        signum = found["methods"]["Signum"]["milliseconds"]["nbytes"]
        assert signum < found["methods"]["dense"]["milliseconds"]["nbytes"] / 15


def test_the_committed_report_is_of_real_data():
    report = json.loads((FOLDER / "report.json").read_text())
    assert report["tasks"]["pictures"]["data"].startswith("CIFAR-10")
    assert report["tasks"]["words"]["data"].startswith("WikiText-2")
    for found in report["tasks"].values():
        assert list(found["methods"]) == METHODS
