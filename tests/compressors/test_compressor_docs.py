"""The page on compressors is true: its example runs, its table has every member."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

from gradstats.compressors import COMPRESSORS, MEMORIES, Rng, compressor, compressors
from gradstats.testing import check_compressor

PAGE = (Path(__file__).parents[2] / "docs" / "compressors.md").read_text(encoding="utf-8")
ROWS = {
    re.match(r"`([\w-]+)", cells[0]).group(1): cells
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]
}


@pytest.fixture
def loud(tmp_path, monkeypatch):
    """The page's example, saved under the name that the page gives it."""
    example, check = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "loud.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("loud")
    return module.Loud, compile(check, "docs/compressors.md", "exec")


def test_the_example_obeys_the_laws_and_speaks_the_grammar(loud):
    member, check = loud
    exec(check, {"Loud": member})
    check_compressor(compressor("ef(loud:Loud(2.5))"))
    assert compressor(str(member(2.5))) == member(2.5)
    grad = torch.tensor([0.1, -0.1, 0.1, -3.0])
    assert member(1.5).encode(grad, None)[0].indices.tolist() == [3]


def test_every_member_has_its_row():
    assert list(ROWS) == [*COMPRESSORS, *MEMORIES]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_rows_say_what_the_code_does(name):
    _, _, settings, sent, collective, memory, _, _ = ROWS[name]
    member = compressors(name, [0.01])[0]
    assert collective == member.contract.collective.replace("_", "-")
    assert (memory != "–") == member.contract.has_memory
    grad = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    payload, _ = member.encode(grad, member.init(grad), Rng())
    per_element = sum({"b": 8, "4": 4, "2": 2}[part] for part in sent.split(" + "))
    assert payload.nbytes == 36 + payload.count * per_element
    defaults = inspect.signature(COMPRESSORS[name]).parameters
    for setting, value in re.findall(r"`(\w+)=([\w.]+)`", settings):
        assert str(defaults[setting].default) == value
