"""Jobs of a replay in other processes: the rows are those of one process, bit for bit."""

import pickle
from concurrent.futures import Executor, Future
from contextvars import Context
from dataclasses import dataclass

import pandas
import pytest

import gradstats
from gradstats.compressors import TopK
from gradstats.kernels.forms import form, use
from gradstats.replaying import streams
from gradstats.replaying.batches import Replaying
from gradstats.replaying.resumable import REPLAY
from gradstats.replaying.settings import ReplaySettings
from gradstats.replaying.spreading import SHARES
from gradstats.runs.results import Results
from tests.conftest import small_gradients, write_run

SPECS = ("topk", "randomk", "sidco-gp", "dgc", "qsgd", "sign", "powersgd", "threshold")


class Elsewhere(Executor):
    """Runs tasks as another process would: what it gets is a copy."""

    def __init__(self):
        self.tasks = []

    def submit(self, task, *args):
        self.tasks.append(pickle.dumps((task, args)))
        task, args = pickle.loads(self.tasks[-1])
        future = Future()
        future.set_result(Context().run(task, *args))
        return future


@dataclass(frozen=True)
class Own(TopK):
    """A compressor of one's own."""

    name = "own"


@pytest.fixture
def run(tmp_path):
    grads = {step: small_gradients(step) for step in range(6)}
    return gradstats.open(write_run(tmp_path / "run.zarr", grads, full=(0, 5), tracked=300))


def replayed(run, settings, folder, executor=None):
    results = Results(run, folder, executor=executor)
    results.ensure(REPLAY, Replaying(settings))
    return results.read("replay")


@pytest.fixture
def advanced(monkeypatch):
    """The form of the kernels at each row that was computed."""
    forms, original = [], streams.advanced

    def seen(*args):
        forms.append(form())
        return original(*args)

    monkeypatch.setattr(streams, "advanced", seen)
    return forms


def test_rows_of_other_processes_are_those_of_one(run, tmp_path, advanced):
    settings = ReplaySettings(SPECS, (0.1, 0.01), ("none", "ef"), ("model", "parameter"))
    expected = replayed(run, settings, tmp_path / "one")
    executor, advanced[:] = Elsewhere(), []
    rows = replayed(run, settings, tmp_path / "many", executor)
    pandas.testing.assert_frame_equal(rows, expected, check_exact=True)
    assert len(advanced) == (expected["status"] == "ok").sum()  # each once
    assert len(executor.tasks) == 4 * SHARES  # of four batches
    assert not (tmp_path / "many" / "parts").exists()


def test_other_processes_use_the_same_form_of_the_kernels(run, tmp_path, advanced):
    executor = Elsewhere()
    with use("eager"):
        replayed(run, ReplaySettings(("topk",), (0.1,)), tmp_path, executor)
    assert set(advanced) == {"eager"}


def test_compressors_of_ones_own_stay_in_this_process(run, tmp_path):
    executor = Elsewhere()
    rows = replayed(run, ReplaySettings((Own(0.1), "bf16"), (0.1,)), tmp_path, executor)
    assert len(executor.tasks) == 1
    assert b"BF16" in executor.tasks[0]
    assert b"Own" not in executor.tasks[0]
    assert set(rows["compressor"]) == {"own(0.1)", "bf16"}
