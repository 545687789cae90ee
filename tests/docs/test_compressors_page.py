"""The pages on compressors are true: tables are the code's, examples run."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from gradstats.compressors import (
    COMPRESSORS,
    MEMORIES,
    POLICIES,
    REFERENCE,
    STAGES,
    SUPPORTED,
    compressor,
    compressors,
)
from gradstats.testing import check_compressor
from tests.docs.contract_table import PAGE, write

SHELVES = (SUPPORTED, REFERENCE)
DOCS = Path(__file__).parents[2] / "docs"
METHODS = DOCS.parent / "gradstats" / "compressors" / "methods"
ADDING = (DOCS / "adding-a-compressor.md").read_text(encoding="utf-8")


@pytest.fixture
def loud(tmp_path, monkeypatch):
    """The page's example, saved under the name that the page gives it."""
    _, example, check = re.findall(r"```python\n(.*?)```", ADDING, re.DOTALL)
    (tmp_path / "loud.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("loud")
    return module.Loud, compile(check, "docs/adding-a-compressor.md", "exec")


def test_the_readme_counts_what_is_promised():
    shelves = [[each for name in shelf for each in compressors(name, [0.01])] for shelf in SHELVES]
    contracts = [each.contract for shelf in shelves for each in shelf]
    bounded = [bool(c.delta or c.omega or c.unbiased) for c in contracts]
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "{} supported and {} reference methods".format(*map(len, shelves)) in readme
    promises = f"({sum(bounded)} a bound or unbiasedness, {bounded.count(False)} nothing)"
    assert promises in readme


@pytest.mark.slow
def test_the_example_obeys_the_laws_and_speaks_the_grammar(loud):
    member, check = loud
    exec(check, {"Loud": member})
    check_compressor(compressor("ef(loud:Loud(2.5))"), fresh_process=False)
    assert compressor(str(member(2.5))) == member(2.5)
    grad = torch.tensor([0.1, -0.1, 0.1, -3.0])
    assert member(1.5).encode(grad, None)[0].indices.tolist() == [3]
    piped = compressor("loud:Loud(1.5) | sign")
    assert piped == member(1.5) | compressor("sign")


def test_the_real_source_on_the_page_is_the_source():
    source = (DOCS.parent / "gradstats" / "compressors" / "methods" / "sign.py").read_text(
        encoding="utf-8"
    )
    assert f"```python\n{source}```" in ADDING


def test_the_tables_are_those_that_the_code_writes():
    """`python -m tests.docs.contract_table` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert write(page) == page
    rows = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert [name for name in rows if name in COMPRESSORS] == list(COMPRESSORS)


@pytest.mark.parametrize("name", [*MEMORIES, *POLICIES, *STAGES])
def test_every_memory_policy_and_stage_is_described(name):
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
