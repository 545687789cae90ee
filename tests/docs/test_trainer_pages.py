"""The scripts on the pages of Lightning, transformers and accelerate, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradstats
from gradstats.store import GradientStore
from tests.processes import soaked
from tests.waiting import PATIENCE

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
SCRIPTS = [("lightning.md", 0), ("transformers.md", 0), ("transformers.md", 1)]


def blocks(page, index):
    """A script of a page, and the commands that run it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[index]
    lines = re.findall(r"^(?:python|torchrun) .*train\.py.*$", text, re.MULTILINE)
    return script, [line.partition("#")[0].split() for line in lines[2 * index : 2 * index + 2]]


def run(words, folder):
    """One command line, by this Python."""
    program, *arguments = words
    command = [sys.executable, *(TORCHRUN if program == "torchrun" else []), *arguments]
    path = os.pathsep.join(
        [str(Path(gradstats.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


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
