"""The pages on compressors are true: tables are the code's, examples run."""

import json
import re
from pathlib import Path

import pytest

from gradstats.compressors import (
    COLLECTIVES,
    COMPRESSORS,
    MEMORIES,
    POLICIES,
    REFERENCE,
    STAGES,
    SUPPORTED,
    compressors,
)
from tests.docs.contract_table import PAGE, write

SHELVES = (SUPPORTED, REFERENCE)
DOCS = Path(__file__).parents[2] / "docs"
METHODS = DOCS.parent / "gradstats" / "compressors" / "methods"


def test_the_readme_counts_what_is_promised():
    shelves = [[each for name in shelf for each in compressors(name, [0.01])] for shelf in SHELVES]
    contracts = [each.contract for shelf in shelves for each in shelf]
    bounded = [bool(c.delta or c.omega or c.unbiased) for c in contracts]
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "{} supported and {} reference methods".format(*map(len, shelves)) in readme
    promises = f"({sum(bounded)} a bound or unbiasedness, {bounded.count(False)} nothing)"
    assert promises in readme


def test_the_tables_are_those_that_the_code_writes():
    """`python -m tests.docs.contract_table` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert write(page) == page
    rows = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert [name for name in rows if name in COMPRESSORS] == list(COMPRESSORS)


@pytest.mark.parametrize("name", [*MEMORIES, *COLLECTIVES, *POLICIES, *STAGES])
def test_every_memory_exchange_policy_and_stage_is_described(name):
    page = PAGE.read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}[(`]", page, re.MULTILINE)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_member_names_its_source(name):
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"| `{name}` |" in line
    )
    reference = row.rstrip(" |").split(" | ")[-1]
    assert name in ("none", "bf16", "fp16", "lossless") or re.search(r"\d{4}|Ours|CGX", reference)


def test_reference_methods_are_short():
    """A file a method, to be read in one go."""
    for make in REFERENCE.values():
        module = getattr(make, "func", make).__module__.rsplit(".", 1)[1]
        assert len((METHODS / f"{module}.py").read_text(encoding="utf-8").splitlines()) < 170


def test_the_readme_counts_the_compressed_trainings():
    report = json.loads((DOCS.parent / "analyses" / "09_training" / "report.json").read_text())
    for workers in ("2", "4"):
        specs = [each["spec"] for each in report["workers"][workers]["methods"].values()]
        assert sum(spec not in ("", "none") for spec in specs) == 17
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    words = " ".join(readme.split())
    assert "compares seventeen compressed trainings on two and on four workers" in words
