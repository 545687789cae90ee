"""A recording neither keeps its training alive nor outlives it, and ends however it must."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import gradstats
from gradstats.recording import capture, every, registry, torch_patches
from gradstats.store import GradientStore
from tests.waiting import PATIENCE, PULSE, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    gradstats.close_all()
    assert not torch_patches._LISTENERS
    assert not writers()


def writers():
    return [one for one in threading.enumerate() if one.name == "gradstats-writer"]


WAYS = {
    "plain": {},
    "local": {"at": ["local", "reduced", "clipped"]},
    "summary": {"summary": True, "full": None},
    "weights": {"weights": True},
}


def trained(make_training, path, steps=3, **settings):
    """Train without closing: the full rows that are due, and references to what trained."""
    training = make_training()
    settings = {"full": every(1), "track": 5, **settings}
    handle = capture(training.model, training.optimizer, path, **settings)
    for _ in range(steps):
        training.step()
    rows = [training.flat(step) for step in range(steps)]
    alive = [training.model, training.optimizer, *training.model.parameters()]
    return handle, rows, [weakref.ref(one) for one in alive]


def gone(references):
    gc.collect()
    return all(reference() is None for reference in references)


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_training_that_is_given_up_goes_and_its_rows_stay(
    make_training, path, read, settings, capsys
):
    _, rows, references = trained(make_training, path, **settings)
    del _
    wait_until(lambda: gone(references))
    gradstats.close_all()
    assert not writers()
    if settings.get("full", 1):
        stream = read(path)
        chosen = [row for row, at in enumerate(stream.coordinates["point"]) if at == "reduced"]
        assert [stream.read(row).tolist() for row in chosen] == [row.tolist() for row in rows]
    assert len(read(path, "track")) == 3 * len(settings.get("at", ["reduced"]))
    said = f"{path}: its optimizer is gone, which ends the recording: "
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_handle_keeps_neither_model_nor_optimizer(make_training, path, settings):
    handle, _, references = trained(make_training, path, **settings)
    wait_until(lambda: gone(references))
    handle.close()
    assert handle.stats.tracked_rows == 3 * len(settings.get("at", ["reduced"]))
    assert handle.step == 3
    handle.log(loss=1.0)


def test_a_closed_handle_keeps_no_parameter(make_training, path):
    handle, _, references = trained(make_training, path)
    handle.close()
    wait_until(lambda: gone(references))
    assert handle.stats.full_rows == 3


def test_five_trainings_without_close_leave_nothing(make_training, tmp_path, read):
    references = []
    for number in range(5):
        handle, _, one = trained(make_training, tmp_path / f"{number}.zarr")
        references += one
    del handle
    wait_until(lambda: gone(references) and not writers())
    assert [len(read(tmp_path / f"{number}.zarr")) for number in range(5)] == [3] * 5


def test_a_list_of_optimizers_goes_too(make_training, path, read):
    def train():
        training = make_training()
        halves = [list(layer.parameters()) for layer in (training.model[0], training.model[2])]
        optimizers = [torch.optim.SGD(half, lr=0.1) for half in halves]
        capture(training.model, optimizers, path, full=every(1), track=0, weights=True)
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            training.backward()
            training.remember()
            for optimizer in optimizers:
                optimizer.step()
        rows = [training.flat(step) for step in range(3)]
        return rows, [weakref.ref(one) for one in (*optimizers, training.model)]

    rows, references = train()
    wait_until(lambda: gone(references))
    gradstats.close_all()
    stream = read(path)
    assert [stream.read(row).tolist() for row in range(3)] == [row.tolist() for row in rows]
    assert len(set(stream.coordinates["learning_rate"])) == 1


def test_what_on_summary_leads_to_goes_and_it_is_told_of_all_rows(make_training, path):
    told = []

    class Trainer:
        def __init__(self):
            self.training = make_training()

        def on_summary(self, step, summaries):
            told.append((step, self.training.flat(step).square().sum().item(), sum(
                summary.total_sq for summary in summaries.values()
            )))  # fmt: skip

        def train(self):
            training = self.training
            capture(training.model, training.optimizer, path, full=None, track=0,
                    on_summary=self.on_summary)  # fmt: skip
            for _ in range(3):
                training.step()

    trainer = Trainer()
    trainer.train()
    reference = weakref.ref(trainer)
    del trainer
    wait_until(lambda: gone([reference]))
    gradstats.close_all()
    assert [step for step, *_ in told] == [0, 1, 2]
    assert all(exact == pytest.approx(total) for _, exact, total in told)


@pytest.mark.parametrize("if_exists", ["resume", "overwrite"])
def test_a_notebook_cell_that_is_run_again(make_training, path, read, if_exists):
    """The second run of the cell: its names are bound anew, the handle last of all."""
    training = make_training()
    handle = capture(training.model, training.optimizer, path, full=every(1), track=0)
    training.step()
    training = make_training()
    handle = capture(
        training.model, training.optimizer, path, full=every(1), track=0, if_exists=if_exists
    )
    training.step()
    handle.close()
    assert read(path).coordinates["segment"].tolist() == ([0, 1] if if_exists == "resume" else [0])
    assert torch.equal(read(path).read(-1), training.flat(0))


def test_a_new_optimizer_for_the_same_model(training, path, read):
    cap = capture(training.model, training.optimizer, path, full=every(1), track=0)
    training.step()
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
    again = capture(
        training.model, training.optimizer, path, full=every(1), track=0,
        if_exists="resume", start_step=cap.step,
    )  # fmt: skip
    training.step()
    again.close()
    cap.close()
    assert read(path).steps.tolist() == [0, 1]
    assert torch.equal(read(path).read(1), training.flat(1))


@pytest.mark.parametrize("if_exists", ["resume", "overwrite"])
def test_a_recording_that_runs_is_named_with_the_way_to_close_it(
    training, make_training, path, if_exists
):
    cap = capture(training.model, training.optimizer, path, full=every(1), track=0)
    training.step()
    other = make_training()
    message = rf"this process \({os.getpid()}\) is writing there.*gradstats\.close_all\(\)"
    with pytest.raises(BlockingIOError, match=message):
        capture(other.model, other.optimizer, path, if_exists=if_exists)
    training.step()
    gradstats.close_all()
    training.step()
    assert cap.stats.full_rows == 2
    with capture(other.model, other.optimizer, path, if_exists=if_exists):
        other.step()


def test_two_live_recordings_stay_apart(training, make_training, tmp_path, read):
    other = make_training()
    for number, one in enumerate((training, other)):
        capture(one.model, one.optimizer, tmp_path / f"{number}.zarr", full=every(1), track=0)
    for one in (training, other, training):
        one.step()
    gradstats.close_all()
    assert [read(tmp_path / f"{n}.zarr").steps.tolist() for n in range(2)] == [[0, 1], [0]]


def test_an_interrupted_close_is_finished_by_a_second_one(training, path, read, monkeypatch):
    append, go_on, raised = GradientStore.append_rows, threading.Event(), threading.Event()

    def interrupted(*args, **kwargs):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        while not raised.wait(PULSE):  # it came just before the main thread began to wait
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        go_on.wait(PATIENCE)
        append(*args, **kwargs)

    def close():
        try:
            cap.close()
        finally:
            raised.set()

    cap = capture(training.model, training.optimizer, path, full=None, track=5)
    for _ in range(3):
        training.step()
    monkeypatch.setattr(GradientStore, "append_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        close()
    go_on.set()
    cap.close()
    assert cap.stats.tracked_rows == 3
    assert read(path, "track").steps.tolist() == [0, 1, 2]
    with GradientStore.open(path, "a") as store:
        store.claim()


def test_an_interrupted_close_is_finished_as_python_exits(tmp_path, read):
    path, script = tmp_path / "run.zarr", tmp_path / "train.py"
    script.write_text(f"""
import signal, threading, torch, gradstats
from gradstats.store import GradientStore
append = GradientStore.append_rows
def interrupted(*args, **kwargs):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    append(*args, **kwargs)
GradientStore.append_rows = interrupted
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
cap = gradstats.capture(model, optimizer, {str(path)!r}, full=None, track=5)
for _ in range(3):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
cap.close()
""")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGINT or "KeyboardInterrupt" in ran.stderr
    assert read(path, "track").steps.tolist() == [0, 1, 2]


def test_close_within_on_summary_does_not_hang(training, path, read):
    cap = capture(
        training.model, training.optimizer, path, full=None, track=0,
        on_summary=lambda step, _: cap.close() if step == 1 else None,
    )  # fmt: skip
    for _ in range(3):
        training.step()
    cap.close()
    wait_until(lambda: not writers())


class Wrapper(torch.optim.Optimizer):
    """As timm's Lookahead and Opacus' DPOptimizer: never runs Optimizer.__init__."""

    def __init__(self, inner):
        self.original_optimizer = inner
        self.defaults = inner.defaults

    @property
    def param_groups(self):
        return self.original_optimizer.param_groups

    @property
    def state(self):
        return self.original_optimizer.state

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


def test_an_optimizer_that_takes_no_hooks_names_the_one_inside(training, path, read):
    wrapper = Wrapper(training.optimizer)
    with pytest.raises(TypeError, match=r"Wrapper.*pass optimizer\.original_optimizer$"):
        capture(training.model, wrapper, path)
    assert not path.exists()
    assert not writers()
    with capture(training.model, wrapper.original_optimizer, path, full=every(1)):
        training.backward()
        training.remember()
        wrapper.step()
    assert torch.equal(read(path).read(0), training.flat(0))


class Broken(Exception):
    pass


def broken(*_, **__):
    raise Broken


FAILURES = {
    "optimizer": ("torch.optim.SGD.register_step_pre_hook", {}),
    "hook": ("gradstats.recording.hooks.hook_first", {"at": "local"}),
    "listen": ("gradstats.recording.torch_patches.listen", {}),
    "schedule": ("", {"full": broken, "at": "local"}),
    "thread": ("gradstats.recording.writer.threading.Thread.start", {}),
    "claim": ("gradstats.store.GradientStore.claim", {}),
    "segment": ("gradstats.store.GradientStore.last_segment", {}),
    "disk": ("gradstats.recording.introduction.shutil.disk_usage", {}),
    "register": ("gradstats.recording.capturing.register", {}),
}


@pytest.mark.parametrize("if_exists", ["error", "resume", "overwrite"])
@pytest.mark.parametrize(("place", "settings"), FAILURES.values(), ids=FAILURES)
def test_an_attach_that_fails_gives_everything_back(
    training, path, read, monkeypatch, place, settings, if_exists
):
    with monkeypatch.context() as patch:
        if place:
            patch.setattr(place, broken)
        with pytest.raises(Broken):
            capture(training.model, training.optimizer, path, if_exists=if_exists, **settings)
    assert not writers()
    assert not torch_patches._LISTENERS
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not any(p._post_accumulate_grad_hooks for p in training.model.parameters())
    with capture(training.model, training.optimizer, path, full=every(1), if_exists=if_exists):
        training.step()
    assert torch.equal(read(path).read(0), training.flat(0))


def test_a_failed_attach_leaves_the_rows_of_a_store_that_it_resumes(
    training, path, read, monkeypatch
):
    with capture(training.model, training.optimizer, path, full=every(1), track=0):
        training.step()
    with monkeypatch.context() as patch:
        patch.setattr(torch_patches, "listen", broken)
        with pytest.raises(Broken):
            capture(training.model, training.optimizer, path, track=0, if_exists="resume")
    assert torch.equal(read(path).read(0), training.flat(0))


def test_close_all_is_public_and_needs_nothing_open():
    assert gradstats.close_all is registry.close_all
    gradstats.close_all()
    gradstats.close_all()
