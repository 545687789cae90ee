"""Every command and snippet of the README and of the tutorial, typed as it stands."""

import os
import re
import shlex
import socket
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradstats
from gradstats.store import Row
from gradstats.store.rows import pack
from tests.conftest import small_gradients, write_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md")
# what takes minutes (tests/reporting has reports of its own) or installs packages
LONG = ("make demo", "make test", "pip install", "gradstats report run.zarr")
LAYER = "layer3.0.conv1.weight"
WHOLE = (461, 480, 500)
TRAINING = """
import torch
model = torch.nn.Linear(40, 30)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.randn(8, 40)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
OWN = """
from gradstats.compressors import TopK

class Mine(TopK):
    pass
"""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, "" for commands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"(?ms)^```(\w*)\n(.*?)^```", text)
    return [block for kind, block in fenced if kind == language]


def commands(page: str) -> list[str]:
    """The lines of the page's blocks of commands, without comments."""
    lines = "".join(blocks(page, "")).splitlines()
    return [line for line in lines if line.strip()]


TYPED = [(page, line) for page in PAGES for line in commands(page) if not line.startswith(LONG)]
SNIPPETS = [(page, text) for page in PAGES for text in blocks(page, "python")]


@pytest.fixture
def folder(tmp_path, monkeypatch, made_once):
    """A folder with `run.zarr`, `train.py`, gradients in files and a module of one's own."""
    run = made_once("typed.zarr", write_two_workers)
    (tmp_path / "run.zarr").symlink_to(run)
    (tmp_path / "train.py").write_text(TRAINING)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "mod.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def write_two_workers(path: Path) -> None:
    """The steps 461 to 500 of two workers: three whole rows and 40 tracked ones of each."""
    grads = {step: small_gradients(step) for step in range(461, 501)}
    for named in grads.values():
        named[LAYER] = named.pop("fc.weight")
    write_run(path, grads, full=WHOLE, tracked=500)
    with gradstats.GradientStore.open(path, "a") as store:
        packed = [(step, *pack(grads[step + 1], store.parameters)) for step in (460, *WHOLE[:2])]
        rows = [Row(step, flat, present, {"point": "local"}) for step, flat, present in packed]
        store.claim(1, store.parameters)
        store.append_rows([replace(row, step=s) for row, s in zip(rows, WHOLE, strict=True)], 1)


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_a_command_runs_as_typed(page, line, folder, call):
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "capture":
        (folder / "run.zarr").unlink()
    code, _, err = call(*words)
    assert code == 0, err


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_a_snippet_runs_as_typed(page, text, folder, group):
    if "gradstats.capture" in text:
        (folder / "run.zarr").unlink()
    exec(compile(text, page, "exec"), names())


@pytest.fixture
def group():
    """A process group of this process alone."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class WithLoss(nn.Module):
    """A model that returns its loss, as the README's loop supposes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 48)

    def forward(self, batch):
        return self.layer(batch).square().mean()


def names() -> dict[str, object]:
    """What a snippet supposes: a model and its optimizer, batches, a run, a DDP model."""
    model = WithLoss()
    return {
        "gradstats": gradstats,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": torch.randn(3, 8, 64),
        "ddp_model": DistributedDataParallel(WithLoss()),
        "MyCompressor": lambda: gradstats.compressor("topk(0.01)"),
        "run": gradstats.open("run.zarr") if Path("run.zarr").exists() else None,
        "__name__": "typed",
    }


def test_the_pages_have_commands_and_snippets():
    assert {page for page, _ in TYPED} == {page for page, _ in SNIPPETS} == set(PAGES)
