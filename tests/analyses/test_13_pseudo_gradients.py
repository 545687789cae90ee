"""The page on pseudo-gradients shows the numbers of the analysis."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "analyses/13_pseudo_gradients"
PAGE = Path(__file__).parents[2] / "docs/pseudo-gradients.md"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree")


@pytest.fixture(scope="module")
def rows():
    return {row["way"]: row for row in json.loads((FOLDER / "report.json").read_text())["rows"]}


def test_the_table_is_that_of_the_report(rows):
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    shown = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines}
    for way, row in rows.items():
        assert shown[way][0] == f"{row['loss']:.2f}"
        assert shown[way][1] == f"{100 * row['energy_of_top_1_percent']:.0f} %"
        assert shown[way][4] == f"{row['gennorm_shape']:.2f}"
        assert shown[way][6] == f"{row['compressors']['topk(0.01)']['nmse']:.2g}"


def test_what_the_page_concludes_is_in_the_report(rows):
    adam = [row for way, row in rows.items() if way.startswith("AdamW")]
    sgd = [row for way, row in rows.items() if way.startswith("SGD")]
    gradient = rows["gradient"]
    assert all(row["zeros"] < 1e-3 for row in adam)
    assert gradient["zeros"] > 0.15
    shares = [row["energy_of_top_1_percent"] for row in adam]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] < gradient["energy_of_top_1_percent"]
    assert all(row["energy_of_top_1_percent"] > gradient["energy_of_top_1_percent"] for row in sgd)
    assert all(row["gennorm_shape"] < 0.6 for row in rows.values())
    for row in rows.values():
        lost = {spec: each["nmse"] for spec, each in row["compressors"].items()}
        # what top-k loses is the energy that it leaves out
        kept = row["energy_of_top_1_percent"]
        assert lost["topk(0.01)"] == pytest.approx(1 - kept, abs=0.01)
        assert lost["mxfp4"] < 0.015 < lost["affine(4)"] < lost["topk(0.1)"]
