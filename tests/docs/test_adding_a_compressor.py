"""A reader follows docs/adding-a-compressor.md: each of its code blocks is run."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import gradstats.compressors
import gradstats.payloads
from gradstats.compressors import ErrorFeedback, Rng, TopK, compressor
from gradstats.testing import check_compressor

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-compressor.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LOUD, CHECK, SUITE, SIGN, TURNS, HALVED, WAITS = BLOCKS
FILES = {"loud": LOUD, "turns": TURNS, "halved": HALVED}
GRADS = torch.randn(5, 40, 30, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Import an example of the page from the file that the page names."""

    def imported(name):
        (tmp_path / f"{name}.py").write_text(FILES[name], encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return getattr(importlib.import_module(name), name.capitalize())

    return imported


def test_the_first_example_is_a_compressor_in_25_lines():
    assert len(LOUD.splitlines()) <= 25


@pytest.mark.parametrize("name", FILES)
def test_a_plug_in_imports_two_modules_of_ours(name):
    ours = set(re.findall(r"^(?:from|import) (gradstats[\w.]*)", FILES[name], re.MULTILINE))
    assert ours <= {"gradstats.compressors", "gradstats.payloads"}


def test_the_first_example_sends_what_is_above_its_threshold(plug_in):
    member = plug_in("loud")
    grad = torch.tensor([0.1, -0.1, 0.1, -3.0])
    assert member(1.5).encode(grad, None)[0].indices.tolist() == [3]
    assert compressor(str(member(2.5))) == member(2.5)
    assert compressor("loud:Loud(1.5) | sign") == member(1.5) | compressor("sign")


@pytest.mark.slow
def test_the_first_example_obeys_the_laws(plug_in):
    exec(CHECK, {"Loud": plug_in("loud")})
    check_compressor(compressor("ef(loud:Loud(2.5))"), fresh_process=False)


def test_the_suite_has_a_test_per_law(plug_in):
    plug_in("loud")
    names = {}
    exec(SUITE, names)
    ids = [param.id for param in names["CHECKS"]]
    assert len(ids) == len(set(ids)) > 5
    (check,) = names["CHECKS"][0].values
    names["test_loud_obeys_the_law"](check)


def test_the_source_on_the_page_is_the_source():
    source = ROOT / "gradstats" / "compressors" / "methods" / "sign.py"
    assert source.read_text(encoding="utf-8") == SIGN


def test_the_example_with_a_state_takes_turns(plug_in):
    member = plug_in("turns")(3)
    state, grad, starts = member.init(GRADS[0]), torch.arange(7.0), []
    for _ in range(4):
        payload, state = member.encode(grad, state)
        starts.append(payload.indices.tolist())
    assert starts == [[0, 3, 6], [1, 4], [2, 5], [0, 3, 6]]
    with pytest.raises(ValueError, match="every must be a whole number from 1, got 0"):
        plug_in("turns")(0)


@pytest.mark.slow
def test_the_example_with_a_state_obeys_the_laws(plug_in):
    check_compressor(plug_in("turns")(), fresh_process=False)


def test_the_example_of_a_memory_is_leaky_error_feedback(plug_in):
    ours, known = plug_in("halved")(TopK(0.1)), ErrorFeedback(TopK(0.1), gamma=0.5)
    states = [member.init(GRADS[0]) for member in (ours, known)]
    for step, grad in enumerate(GRADS):
        (a, states[0]), (b, states[1]) = (
            member.encode(grad, state, Rng(step=step))
            for member, state in zip((ours, known), states, strict=True)
        )
        assert torch.equal(a.decode(), b.decode())
        assert torch.equal(states[0].residual, states[1].residual)


@pytest.mark.slow
def test_the_example_of_a_memory_obeys_the_laws(plug_in):
    plug_in("halved")
    check_compressor(compressor("halved:Halved(topk(0.1))"), fresh_process=False)


def test_every_name_and_file_on_the_page_is_there():
    section = PAGE.split("## What to import")[1].split("## The contract")[0]
    compressors, payloads = section.split("- `gradstats.payloads`")
    for text, module in ((compressors, gradstats.compressors), (payloads, gradstats.payloads)):
        names = set(re.findall(r"`([A-Za-z_]\w+)`", text))
        assert names
        missing = {name for name in names if not hasattr(module, name)}
        assert missing == set()
    files = re.findall(r"`((?:gradstats|tests|analyses)/[\w/.]+)`", PAGE)
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_the_table_of_payloads_has_every_kind():
    section = PAGE.split("| payload |")[1].split("What becomes of a payload")[0]
    kinds = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(kinds) == sorted(kind.__name__ for kind in gradstats.payloads.KINDS)


def test_the_reads_of_the_page_are_counted(capsys):
    exec(compile(WAITS, "the page", "exec"), {})  # its own block
    reads, uploads, *_ = capsys.readouterr().out.split()
    assert (reads, uploads) == ("2", "1")
