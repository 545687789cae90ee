"""Below the command, the first step's row knows as much of its step as the others."""

import sys

import numpy as np
import pytest
import torch

import gradstats
from gradstats.recording.schedules import every
from gradstats.recording.script.command import run_command
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


@pytest.fixture
def recorded(tmp_path):
    """Run a script below the command; its store and the gradients that it saw."""

    def run(text):
        script, seen = tmp_path / "train.py", tmp_path / "seen.pt"
        script.write_text(BEGIN + text + END)
        path = tmp_path / "run.zarr"
        command = [sys.executable, str(script), str(seen)]
        assert run_command(command, CaptureSettings(full=every(1), track=None), out=path) == 0
        return path, torch.load(seen)

    return run


def test_clipping_and_micro_batches_of_the_first_step(recorded):
    path, seen = recorded(CLIPPED)
    stream = GradientStore.open(path).stream()
    facts = stream.coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3]
    assert facts["micro_step"].tolist() == [1] * 4
    for row, grad in enumerate(seen):
        assert torch.equal(stream.read(row), grad)
        assert facts["clip_norm"][row] == pytest.approx(grad.norm().item(), rel=1e-6)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_scaler_that_starts_by_leaving_steps_out(recorded, fused):
    path, seen = recorded(SCALED.replace("FUSED", str(fused)))
    facts = GradientStore.open(path).stream().coordinates
    assert facts["step"].tolist() == [0, 1, 2, 3]
    assert facts["skipped"].tolist() == [1, 1, 0, 0]
    assert facts["loss_scale"].tolist() == [1024.0, 512.0, 256.0, 256.0]
    assert facts["unscaled"].tolist() == [0 if fused else 1] * 4
    run = gradstats.open(path)
    for step in (2, 3):
        assert torch.allclose(run.read(step), seen[step], rtol=1e-6)


def test_a_fused_optimizer_from_the_first_step_on(recorded):
    path, seen = recorded(SCALED.replace("FUSED", "True").replace("if step < 2", "if False"))
    facts = GradientStore.open(path).stream().coordinates
    assert facts["loss_scale"].tolist() == [1024.0] * 4
    assert not facts["unscaled"].any()
    for step, grad in gradstats.open(path).gradients():
        assert torch.allclose(grad, seen[step], rtol=1e-6)


def test_of_two_optimizers_the_first_to_be_clipped_is_recorded(recorded, capfd):
    path, seen = recorded(TWO)
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert np.isfinite(stream.coordinates["clip_norm"]).all()
    for row, grad in enumerate(seen):
        assert torch.equal(stream.read(row), grad)
    said = capfd.readouterr().err
    assert "3 steps of other optimizers were not recorded (SGD 3)" in said


def test_trainings_after_the_first_are_counted(recorded, capfd):
    path, seen = recorded(INNER)
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert all(torch.equal(stream.read(row), seen[row]) for row in range(3))
    assert "12 steps of other optimizers were not recorded (SGD 12)" in capfd.readouterr().err


def test_an_optimizer_that_was_not_made_here(recorded):
    path, seen = recorded(UNPICKLED)
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 1, 2]
    assert all(torch.equal(stream.read(row), grad) for row, grad in enumerate(seen))
