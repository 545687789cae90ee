"""Below the command, the first step's row knows as much of its step as the others."""

import sys

import numpy as np
import pytest
import torch

import gradstats
from gradstats.recording.schedules import every
from gradstats.recording.script.command import run_command
from gradstats.recording.script.trainings import numbered
from gradstats.recording.settings import CaptureSettings
from gradstats.store import GradientStore

pytestmark = pytest.mark.slow

BEGIN = """
import sys, torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
seen = []

def grads(of=model):
    return torch.cat([p.grad.reshape(-1) for p in of.parameters()]).clone()

def backward(of=model, scale=lambda loss: loss):
    scale(of(torch.randn(4, 6)).square().mean()).backward()

"""
END = """
torch.save(seen, sys.argv[1])
"""
CLIPPED = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(4):
    optimizer.zero_grad()
    backward()
    backward()
    seen.append(grads())
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
"""
SCALED = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=FUSED)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
for step in range(4):
    optimizer.zero_grad()
    backward(scale=scaler.scale)
    if step < 2:
        model[0].weight.grad[0] = torch.inf
    seen.append(grads() / scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
"""
TWO = """
other = nn.Linear(6, 3)
first = torch.optim.SGD(other.parameters(), lr=0.1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for _ in range(3):
    for of, one in ((model, optimizer), (other, first)):
        one.zero_grad()
        backward(of)
        if of is model:
            seen.append(grads())
        nn.utils.clip_grad_norm_(of.parameters(), 0.01)
        one.step()
"""
INNER = """
for task in range(5):
    copied = nn.Linear(6, 3)
    inner = torch.optim.SGD(copied.parameters(), lr=0.1)
    for _ in range(3):
        inner.zero_grad()
        backward(copied)
        seen.append(grads(copied))
        inner.step()
"""
UNPICKLED = """
import pickle
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
for _ in range(3):
    optimizer.zero_grad()
    backward(model)
    seen.append(grads(model))
    optimizer.step()
"""


FUSED = SCALED.replace("FUSED", "True")
SCRIPTS = {
    "clipped": CLIPPED,
    "scaled": SCALED.replace("FUSED", "False"),
    "fused": FUSED.replace("if step < 2", "if False"),
    "two": TWO,
    "inner": INNER,
    "unpickled": UNPICKLED,
}
FORKS = """
import atexit, os, sys
from multiprocessing import get_context
import torch
import torch._dynamo, zarr  # once for all of them

FOLDER, SCRIPTS = sys.argv[1], {scripts!r}

def train(name, text):
    os.dup2(os.open(f"{{FOLDER}}/{{name}}.err", os.O_WRONLY | os.O_CREAT), 2)
    sys.argv[1] = f"{{FOLDER}}/{{name}}.pt"
    exec(compile(text, name, "exec"), {{"__name__": "__main__"}})
    atexit._run_exitfuncs()  # such processes end by os._exit

torch.set_num_threads(1)
for name, text in SCRIPTS.items():
    child = get_context("fork").Process(target=train, args=(name, text))
    child.start()
    child.join()
    assert child.exitcode == 0, name
"""


def run_scripts(folder, scripts):
    """Run scripts below one command, each in a process of its own.

    Returns:
        For each the store, the gradients that it saw, and what was printed to stderr.
    """
    file = folder / "train.py"
    texts = {name: BEGIN + text + END for name, text in scripts.items()}
    file.write_text(FORKS.format(scripts=texts))
    path = folder / "run.zarr"
    command = [sys.executable, str(file), str(folder)]
    assert run_command(command, CaptureSettings(full=every(1), track=None), out=path) == 0
    return {
        name: (
            numbered(str(path), number),
            torch.load(folder / f"{name}.pt"),
            (folder / f"{name}.err").read_text(),
        )
        for number, name in enumerate(scripts, 1)
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return run_scripts(tmp_path_factory.mktemp("first"), SCRIPTS)


def test_clipping_and_micro_batches_of_the_first_step(recorded):
    path, seen, _ = recorded["clipped"]
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3]
    assert facts["micro_step"].tolist() == [1] * 4
    for row, grad in enumerate(seen):
        assert torch.equal(stream.read(row), grad)
        assert facts["clip_norm"][row] == pytest.approx(grad.norm().item(), rel=1e-6)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.soak)], ids=str)
def left_out(request, recorded, tmp_path):
    """Whether the optimizer is fused, and what was recorded."""
    if request.param:
        return True, run_scripts(tmp_path, {"fused": FUSED})["fused"]
    return False, recorded["scaled"]


def test_a_scaler_that_starts_by_leaving_steps_out(left_out):
    fused, (path, seen, _) = left_out
    facts = GradientStore.open(path).stream().coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3]
    assert facts["skipped"].tolist() == [1, 1, 0, 0]
    assert facts["loss_scale"].tolist() == [1024.0, 512.0, 256.0, 256.0]
    assert facts["unscaled"].tolist() == [0 if fused else 1] * 4
    run = gradstats.open(path)
    for step in (2, 3):
        assert torch.allclose(run.read(step), seen[step], rtol=1e-6)


def test_a_fused_optimizer_from_the_first_step_on(recorded):
    path, seen, _ = recorded["fused"]
    facts = GradientStore.open(path).stream().coordinates
    assert facts["loss_scale"].tolist() == [1024.0] * 4
    assert not facts["unscaled"].any()
    for step, grad in gradstats.open(path).gradients():
        assert torch.allclose(grad, seen[step], rtol=1e-6)


def test_of_two_optimizers_the_first_to_be_clipped_is_recorded(recorded):
    path, seen, said = recorded["two"]
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert np.isfinite(stream.coordinates["clip_norm"]).all()
    for row, grad in enumerate(seen):
        assert torch.equal(stream.read(row), grad)
    assert "3 steps of other optimizers were not recorded (SGD 3)" in said


def test_trainings_after_the_first_are_counted(recorded):
    path, seen, said = recorded["inner"]
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert all(torch.equal(stream.read(row), seen[row]) for row in range(3))
    assert "12 steps of other optimizers were not recorded (SGD 12)" in said


def test_an_optimizer_that_was_not_made_here(recorded):
    path, seen, _ = recorded["unpickled"]
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert all(torch.equal(stream.read(row), grad) for row, grad in enumerate(seen))
