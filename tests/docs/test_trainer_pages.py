"""The scripts on the pages of Lightning, transformers and accelerate, run as they stand."""

import re
from pathlib import Path

import pytest

from gradstats.store import GradientStore
from tests.processes import run_script, soaked

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPTS = [("lightning.md", 0), ("transformers.md", 0), ("transformers.md", 1)]


def blocks(page, index):
    """A script of a page, and the commands that run it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[index]
    lines = re.findall(r"^(?:python|torchrun) .*train\.py.*$", text, re.MULTILINE)
    return script, [line.partition("#")[0].split() for line in lines[2 * index : 2 * index + 2]]


def run(words, folder):
    """What one command line of a page prints, by its first worker first."""
    program, *words = words
    workers = 1
    if program == "torchrun":
        option, workers, *words = words
        assert option == "--nproc-per-node"
    ends = run_script(words, folder, int(workers), OMP_NUM_THREADS=1)
    assert all(code == 0 for code, _, _ in ends), ends
    return "".join(out + err for _, out, err in ends)


@soaked("runs", 1, 2)
@pytest.mark.parametrize(("page", "index"), SCRIPTS)
def test_a_script_runs_as_it_stands(tmp_path, page, index, runs):
    script, commands = blocks(page, index)
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    assert len(commands) == 2
    for number, words in enumerate(commands[:runs], 1):
        text = run(words, tmp_path)
        steps = 10 * number
        share = r"[\d.]+ kB sent per worker, 1/(\d+) of dense"
        state = rf"CompressorState\('ef\(topk\(0.01\)\)', 2 workers, {steps} steps, {share}"
        (times,) = re.findall(state, text)
        assert 20 < int(times) < 60
        if not index:
            stream = GradientStore.open(tmp_path / "run.zarr").stream(worker=1)
            assert stream.steps.tolist() == list(range(0, steps, 5))
