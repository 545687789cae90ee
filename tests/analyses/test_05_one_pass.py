"""A quick run of the analysis of the one pass measures what its report has."""

import json
from pathlib import Path

import pytest

from tests.processes import run_script

FOLDER = Path(__file__).parents[2] / "analyses/05_one_pass"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree"),
]


def test_a_quick_run_measures_every_kind_of_data(tmp_path):
    words = [FOLDER / "run.py", "--quick", "--out", tmp_path / "report.json"]
    ((code, _, err),) = run_script(words, tmp_path)
    assert code == 0, err
    found, kept = (
        json.loads(file.read_text())["milliseconds"]
        for file in (tmp_path / "report.json", FOLDER / "report.json")
    )
    assert found.keys() == kept.keys()
    assert all(found[data].keys() == kept[data].keys() for data in found if data != "segments")
