"""The script that measures what capture costs: it runs, and its numbers reach the pages."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_script

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analyses/06_capture_overhead"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="not in a source tree"),
]


@pytest.fixture(scope="module")
def modules():
    """Its modules, whose names are free again afterwards."""
    before = set(sys.modules)
    sys.path[:0] = [str(FOLDER)]
    import off_steps
    import on_gpu
    import plot
    import timing
    import whole_run

    yield {m.__name__: m for m in (off_steps, on_gpu, plot, timing, whole_run)}
    for name in set(sys.modules) - before:
        if str(ROOT / "analyses") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "analyses" not in path]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("overhead") / "report.json"
    words = [FOLDER / "run.py", "--quick", "--out", out, "--disk", out.parent]
    ((code, _, err),) = run_script(words, out.parent, OMP_NUM_THREADS=1, GRADSTATS_DATA=None)
    assert code == 0, err
    assert list(out.parent.iterdir()) == [out]  # what was recorded is gone
    return json.loads(out.read_text())


def test_a_quick_run_measures_everything_that_is_asked(report, modules):
    lines = modules["plot"].lines(report)
    asked = [asked for *_, asked in lines if asked]
    assert asked == [
        *("< 10 µs", "< 10 µs", "< 250 µs", "≤ 3 %"),
        *["≤ 1.5×"] * 4,
        *["≥ 0.7×"] * 6,
        "< 3 %",
        "≤ 1.2×; none",
    ]
    assert report["pictures"].startswith("noise")
    assert report["stall"]["ResNet-20"]["elements"] == 269_722
    assert report["threads"] == 1
    for stall in report["stall"].values():
        for one in (stall["spaced"], stall["every step"]):
            assert one["ratio"] == pytest.approx(one["row_us"] / one["flat_copy_us"])
    rows = report["whole_run"]
    assert {"nothing", "torch.save, every step"} <= set(rows["ways"])
    assert rows["ways"]["nothing"]["steps"] == rows["block"] * rows["rounds"]


def test_the_pages_hold_the_numbers_of_the_report(modules):
    plot = modules["plot"]
    file = FOLDER / "report.json"
    text = plot.table(json.loads(file.read_text()) if file.exists() else None)
    for page in plot.PAGES:
        assert plot.filled(page.read_text(), text) == page.read_text(), page


def test_filling_a_page_touches_nothing_else(modules):
    plot = modules["plot"]
    page = f"before\n{plot.BEGIN}old\n{plot.END}after\n"
    assert plot.filled(page, "new") == f"before\n{plot.BEGIN}\nnew\n{plot.END}after\n"


def test_the_clock_between_hooks_times_what_is_attached_between_them(modules, monkeypatch):
    """By a clock that only what is attached moves on."""
    training, now = modules["timing"].small(1), [100.0]
    monkeypatch.setattr(modules["timing"].time, "perf_counter", lambda: now[0])

    def work(*_):
        now[0] += 0.25

    def attach():
        training.optimizer.register_step_pre_hook(work)
        return "handle"

    handle, seconds = modules["timing"].timed_hooks(training.optimizer, attach)
    for _ in range(3):
        training.backward()
        training.optimizer.step()
    assert handle == "handle"
    assert seconds == [0.25] * 3


def test_the_flat_copy_is_the_gradient(modules):
    timing = modules["timing"]
    training = timing.small(3)
    training.backward()
    buffer = torch.zeros(training.elements)
    timing.flat_copy(training.parameters, buffer)
    start = 0
    for _, parameter in training.model.named_parameters():
        part = buffer[start : start + parameter.numel()].view(parameter.shape)
        assert torch.equal(part, parameter.grad)
        start += parameter.numel()
    assert start == training.elements == 3 * 20


def test_the_stand_in_for_watch_counts_like_a_loop_and_only_when_due(modules):
    whole_run = modules["whole_run"]
    grad = torch.tensor([-1.0, -0.5, 0.0, 0.25, float("nan"), 1.0, 1.0, float("inf")])
    counts, edges = whole_run.histogram(grad, bins=4)
    assert edges == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert counts == [1, 1, 2, 2]  # an edge belongs to the bin on its right, the last to the left
    training = modules["timing"].small(1)
    with whole_run._watched(training.model, frequency=3) as histograms:
        for step in range(1, 4):
            training.backward()
            assert bool(histograms) == (step == 3)
    assert set(histograms) == {"0.weight", "0.bias"}
    histograms.clear()
    training.backward()
    assert not histograms  # the hooks are gone


def test_histograms_now_and_then_cost_their_share(modules):
    whole_run = modules["whole_run"]
    times = {"nothing": 100.0, "due": 150.0, "off": 101.0}
    ways = {name: {"step_ms": took} for name, took in times.items()}
    # of 10 steps one takes 150 and nine take 101: 1,059 where it would be 1,000
    assert whole_run.at_frequency(ways, "due", "off", 10) == pytest.approx(5.9)


def test_a_profile_is_searched_for_calls_that_wait(modules):
    """A trace as torch writes it, made by hand: no GPU is needed."""

    def call(name, start, thread=7, category="cuda_runtime"):
        return {"name": name, "cat": category, "tid": thread, "ts": start, "dur": 1}

    inside = {"name": "gradstats capture", "cat": "user_annotation", "tid": 7, "ts": 10, "dur": 10}
    harmless = [
        call("cudaMemcpyAsync", 12),
        call("cudaStreamWaitEvent", 13),
        call("cudaStreamSynchronize", 25),
        call("cudaDeviceSynchronize", 14, thread=8),
    ]
    waiting_calls = modules["on_gpu"].waiting_calls
    assert waiting_calls([inside, *harmless]) == []
    bad = [call("cudaStreamSynchronize", 15), call("cudaMemcpy", 16)]
    assert waiting_calls([inside, *harmless, *bad]) == ["cudaMemcpy", "cudaStreamSynchronize"]
    with pytest.raises(RuntimeError, match="not in it"):
        waiting_calls(harmless)
