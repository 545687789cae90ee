"""Forks, threads, many parameters, several processes on one path, counters that restart."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import gradstats
from gradstats.recording import capture, every
from gradstats.store import GradientStore
from tests.processes import run_workers
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

FORKING = """
import sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch
from torch import nn
from torch.utils.data import DataLoader
from gradstats.recording import capture, every
from gradstats.summary import summarize

grad = torch.randn(3_000_000)
whole = summarize(grad)
found = []
threads = [threading.Thread(target=lambda: found.append(summarize(grad))) for _ in range(2)]
model = nn.Linear(100, 100)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with capture(model, optimizer, sys.argv[1], full=every(2), track=50, summary=True) as cap:
    for thread in threads:
        thread.start()
    loader = DataLoader(torch.randn(64, 100), 8, num_workers=2, multiprocessing_context="fork")
    for epoch in range(3):
        for batch in loader:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    for thread in threads:
        thread.join()
assert found == [whole, whole]
print(cap.stats.full_rows, cap.stats.tracked_rows, cap.stats.summary_rows, cap.stats.dropped)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_threads_and_forking_loaders_are_harmless(path, tmp_path, layer):
    script = tmp_path / "train.py"
    script.write_text(FORKING)
    ended = subprocess.run(
        [sys.executable, str(script), str(path)],
        env={**os.environ, "NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "12 24 24 0\n"


def test_ten_thousand_tiny_parameters(path):
    model = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(10_000)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"full": every(2), "track": 100, "at": ["local", "reduced"], "quiet": True}
    with capture(model, optimizer, path, **settings) as cap:
        for step in range(3):
            optimizer.zero_grad()
            torch._foreach_mul(list(model), float(step + 1))
            sum(p.sum() * i for i, p in enumerate(model)).backward()
            optimizer.step()
    assert cap.stats.dropped == 0
    exact = torch.arange(10_000.0).repeat_interleave(3)
    stream = GradientStore.open(path).stream()
    assert stream.coordinates["point"].tolist() == ["local", "reduced"] * 2
    assert all(torch.equal(stream.read(row), exact) for row in range(4))


def test_a_step_counter_that_restarts_needs_a_segment(path, training):
    def record(if_exists):
        return capture(
            training.model, training.optimizer, path, full=every(1), track=5, if_exists=if_exists
        )

    for if_exists, start in (("error", 0), ("resume", 0)):
        with record(if_exists) as cap:
            assert cap.step == start
            training.step()
            training.step()
    coordinates = GradientStore.open(path).stream().coordinates
    assert coordinates["step"].tolist() == [0, 1, 0, 1]
    assert coordinates["segment"].tolist() == [0, 0, 1, 1]
    assert gradstats.open(path).rows() == [2, 3]  # no start_step: all from step 0 on is told anew


def test_rows_of_one_kind_are_undone_by_a_restart_that_wrote_another(path, training):
    """A restart at step 3 ends at step 5, before its first whole row is due."""
    settings = {"full": every(5), "track": 5, "quiet": True}
    for start, steps, more in ((0, 7, {}), (3, 2, {"if_exists": "resume", "start_step": 3})):
        with capture(training.model, training.optimizer, path, **settings, **more) as cap:
            assert cap.step == start
            for _ in range(steps):
                training.step()
    run = gradstats.open(path)
    assert [int(run.stream("track").steps[row]) for row in run.rows("track")] == [0, 1, 2, 3, 4]
    assert run.stream().steps.tolist() == [0, 5]
    assert run.rows("full") == [0]


def second_run(_rank, _world, _meeting, path, if_exists):
    model = nn.Linear(12, 9)
    try:
        capture(model, torch.optim.SGD(model.parameters()), path, if_exists=if_exists)
    except (BlockingIOError, ValueError) as error:
        sys.stdout.write(f"{type(error).__name__}\n")


def test_a_second_run_cannot_write_to_the_path_of_the_first(path, tmp_path):
    model = nn.Linear(12, 9)
    with capture(model, torch.optim.SGD(model.parameters()), path):
        for if_exists in ("resume", "overwrite"):
            ((code, out, err),) = run_workers(second_run, 1, tmp_path, str(path), if_exists)
            assert (code, out) == (0, "BlockingIOError\n"), err
    assert GradientStore.open(path).workers == (0,)


def test_gradients_overwritten_at_once_are_stored_intact(path):
    model = nn.Linear(300, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    points = ["local", "reduced", "clipped"]
    exact = []
    with capture(model, optimizer, path, full=every(1), track=100, at=points) as cap:
        for step in range(20):
            model(torch.randn(2, 300)).square().mean().backward()
            exact.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
            for parameter in model.parameters():
                parameter.grad.fill_(float(step))
            optimizer.zero_grad(set_to_none=False)
    assert cap.stats.dropped == 0
    stream = GradientStore.open(path).stream()
    for row, step in enumerate(stream.steps):
        assert torch.equal(stream.read(row), exact[step]), (row, stream.coordinates["point"][row])
    assert np.array_equal(stream.steps, np.repeat(range(20), 3))
