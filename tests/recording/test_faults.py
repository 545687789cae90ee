"""Whatever goes wrong, training goes on, rows on disk stay, and what is lost is counted."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from gradstats.recording import capture, every, slots, writer
from gradstats.recording.staging import Source
from gradstats.store import GradientStore
from tests.waiting import wait_until


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_drops_rows_and_says_so_once(path, training, monkeypatch, capsys, read):
    cap = capture(training.model, training.optimizer, path, full=every(1), track=9, quiet=True)
    training.step()
    training.step()
    wait_until(lambda: cap.stats.tracked_rows == 1)
    with monkeypatch.context() as patch:
        patch.setattr(GradientStore, "append_rows", no_space)
        for _ in range(6):
            training.step()
        wait_until(lambda: cap.stats.dropped == 12)
    training.step()
    costs = [source.cost for source in cap._rows.before]
    cap.close()
    kept = [0, 7, 8]
    assert read(path).steps.tolist() == read(path, "track").steps.tolist() == kept
    assert all(torch.equal(read(path).read(row), training.flat(s)) for row, s in enumerate(kept))
    text = capsys.readouterr().err
    assert text.count("No space left on device") == 1
    assert "cannot write step 1" in text
    budget = cap._rows._plan.budget
    assert budget.remaining == budget.available - 3 * sum(costs)


def test_only_what_is_not_stored_counts_as_dropped(path, training, monkeypatch, read):
    """Of two Summaries the second fails; of tracked rows only the shadows beside them."""
    append, calls = GradientStore.append_rows, []

    def failing(store, rows, worker=0, kind="full"):
        calls.append(kind)
        if kind == "shadow" or (kind == "summary" and calls.count("summary") % 2 == 0):
            no_space()
        append(store, rows, worker, kind)

    monkeypatch.setattr(GradientStore, "append_rows", failing)
    settings = {"summary": True, "track": 9, "shadow": ["none"], "at": ["reduced", "clipped"]}
    with capture(training.model, training.optimizer, path, full=every(1), **settings) as cap:
        for _ in range(3):
            training.step()
        costs = {source.kind: source.cost for source in cap._rows.before}
    assert (cap.stats.full_rows, cap.stats.tracked_rows, cap.stats.summary_rows) == (6, 6, 3)
    assert [len(read(path, kind)) for kind in ("full", "track", "summary", "shadow")] == [
        6,
        6,
        3,
        0,
    ]
    assert cap.stats.dropped == 3 + 6
    stored = 6 * costs["full"] + 6 * costs["track"] + 3 * costs["summary"]
    assert cap._rows._plan.budget.remaining == cap._rows._plan.budget.available - stored


def test_a_fault_in_the_hook_never_reaches_the_training(path, training, monkeypatch, capsys, read):
    def broken(*_, **__):
        raise RuntimeError("broken on purpose")

    with capture(training.model, training.optimizer, path, full=every(1), track=9) as cap:
        training.step()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_foreach_copy_", broken)
            patch.setattr(Source, "_copy", broken)
            for _ in range(200):  # more than there are slots: they come back
                training.optimizer.step()
        training.step()
    assert cap.stats.dropped == 400
    assert read(path).steps.tolist() == read(path, "track").steps.tolist() == [0, 201]
    assert capsys.readouterr().err.count("broken on purpose") == 1


def test_a_schedule_that_fails_never_reaches_the_training(path, training, capsys):
    with capture(training.model, training.optimizer, path, full=lambda step: 1 / 0, track=0):
        training.step()
        training.step()
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1


def test_a_model_whose_dtype_changes_later_is_dropped_and_said(path, training, capsys, read):
    with capture(training.model, training.optimizer, path, full=every(1)) as cap:
        training.step()
        training.model.double()
        training.step()
    assert cap.stats.dropped == 2
    assert "'0.weight': its gradient is torch.float64 and the store holds float32" in (
        capsys.readouterr().err
    )
    assert read(path).steps.tolist() == [0]


def test_a_loss_that_is_none_never_reaches_the_training(path, training, capsys, read):
    with capture(training.model, training.optimizer, path) as cap:
        for loss in (torch.ones(3), "high", None):
            training.step()
            cap.log(loss=loss)
        cap.log(loss=1.5)
    assert read(path, "track").coordinates["loss"][2] == 1.5
    assert capsys.readouterr().err.count("cannot log the loss") == 1


def test_new_parameter_groups_are_mentioned(path, training, capsys):
    with capture(training.model, training.optimizer, path):
        training.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        training.step()
        training.step()
    assert capsys.readouterr().err.count("new parameters, which are not recorded") == 1


@pytest.mark.usefixtures("slow_disk")
def test_a_slow_disk_holds_the_training_back_and_loses_nothing(path, training, read, monkeypatch):
    for module in (slots, writer):
        monkeypatch.setattr(module, "BATCH_ROWS", 1)  # two rows wait, as large ones do
    with capture(training.model, training.optimizer, path, full=every(1), track=0) as cap:
        for _ in range(10):
            training.step()
    assert read(path).steps.tolist() == list(range(10))
    assert all(torch.equal(read(path).read(row), training.flat(row)) for row in range(10))
    assert cap.stats.seconds > 0.2


def test_a_closed_stderr_never_reaches_the_training(path, training, monkeypatch, read):
    class Closed:
        def write(self, _):
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stderr", Closed())
    with capture(training.model, training.optimizer, path):
        training.step()
    monkeypatch.setattr(sys, "stderr", None)
    assert len(read(path)) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_recording_alone(path, training, read):
    with capture(training.model, training.optimizer, path, full=every(1)) as cap:
        training.step()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            for _ in range(200):  # more than there are slots, and no writer to empty them
                training.optimizer.step()
            cap.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        training.step()
    assert read(path).steps.tolist() == [0, 1]


KILLED = """
import sys, torch
from gradstats.recording import capture, every

rng = torch.Generator().manual_seed(int(sys.argv[2]))
model = torch.nn.Linear(50, 40)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
cap = capture(model, optimizer, sys.argv[1], full=every(3), track=500, if_exists="resume")
while True:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    optimizer.step()
    print(cap.stats.full_rows, flush=True)
"""


@pytest.mark.slow
def test_a_killed_training_leaves_a_store_that_opens_with_exact_rows(path, tmp_path, read):
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    for seed, rows in enumerate((2, 9)):
        command = [sys.executable, str(script), str(path), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            while int(child.stdout.readline()) < rows:
                pass
            child.send_signal(signal.SIGKILL)
    for kind, stride in (("full", 3), ("track", 1)):
        stream = read(path, kind)
        ids = slice(None) if kind == "full" else stream.element_ids["float32"]
        segments = stream.coordinates["segment"]
        assert len(stream) > 10
        assert set(segments) == {0, 1}
        for seed in (0, 1):
            rows = (segments == seed).nonzero()[0]
            assert stream.steps[rows].tolist() == [stride * i for i in range(len(rows))]
            rng = torch.Generator().manual_seed(seed)
            for row in rows:
                for _ in range(stride if stream.steps[row] else 1):
                    exact = torch.cat(
                        [torch.randn(n, generator=rng).reshape(-1) for n in ((40, 50), (40,))]
                    )
                assert torch.equal(stream.read(int(row)), exact[ids])
