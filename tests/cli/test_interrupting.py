"""Ctrl-C on the command line: one line that names what is kept, and exit code 130."""

import signal
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from gradstats.cli import analysing, demo, making
from gradstats.cli import app as commands
from gradstats.runs.tasks import workers
from tests.processes import run_script
from tests.waiting import PATIENCE, wait_until


@pytest.fixture
def interrupted(monkeypatch):
    """Call `interrupted(calls, *words)`: the progress bar is interrupted at that call."""

    def call(calls, *words):
        left = [calls]

        def advance(stage, done, total):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        class Bar:
            def __enter__(self):
                return advance

            def __exit__(self, *error):
                return None

        for theme in (analysing, making):
            monkeypatch.setattr(theme, "bar", Bar)
        return CliRunner().invoke(commands.app, [*map(str, words)])

    return call


def test_a_fit_and_a_replay_name_what_is_kept(interrupted, call, small_run, tmp_path):
    words = (small_run, "--steps", ":40", "--out", tmp_path)
    fit = ("fit", *words, "--families", "laplace", "--ratios", "0.1")
    result = interrupted(1, *fit)
    assert result.exit_code == 130
    line = f"interrupted: 1 of 1 rows are in {tmp_path}; the same command continues\n"
    assert result.stderr == line
    replay = ("replay", *words, "--compressors", "topk", "--ratios", "0.1", "--feedback", "ef")
    result = interrupted(7, *replay)
    line = f"interrupted: 7 of 40 rows are in {tmp_path}; the same command continues\n"
    assert (result.exit_code, result.stderr) == (130, line)
    assert call(*replay)[0] == 0
    assert not (tmp_path / "parts" / "replay").exists()


def test_a_report_names_what_is_kept(interrupted, small_run, tmp_path):
    result = interrupted(1, "report", small_run, "--steps", ":3", "--out", tmp_path)
    line = f"interrupted: 1 of 1 rows are in {tmp_path}; the same command continues\n"
    assert (result.exit_code, result.stderr) == (130, line)


def test_a_copy_and_an_import_leave_nothing(interrupted, small_run, tmp_path):
    out = tmp_path / "copy.zarr"
    result = interrupted(1, "copy", small_run, out)
    line = f"interrupted: nothing is left of {out}; the same command begins anew\n"
    assert (result.exit_code, result.stderr) == (130, line)
    file = tmp_path / "0.npy"
    np.save(file, np.ones(3, np.float32))
    before = {*tmp_path.iterdir()}
    result = interrupted(1, "import", file, "--out", out)
    line = f"interrupted: {out} is as it was before; the same command begins anew"
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, line)
    assert {*tmp_path.iterdir()} == before


def test_a_demo_names_what_continues(interrupted, tmp_path, monkeypatch):
    out = tmp_path / "demo.zarr"
    monkeypatch.setattr(demo, "QUICK", demo.Plan(steps=3, full_rows=1, batch=2, budget=1.0))
    result = interrupted(2, "demo", "--quick", "--out", out)
    line = f"interrupted: the steps so far are in {out}; the same command with --overwrite"
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"{line} begins anew"
    result = interrupted(4, "demo", "--quick", "--out", out, "--overwrite")
    line = f"interrupted: the training is in {out}; gradstats report {out} continues"
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, line)


SIGNALLED = """
import os, signal, sys
from gradstats.cli import analysing, app

def advance(stage, done, total):
    if done == 5:
        os.kill(os.getpid(), signal.{signal})

class Bar:
    def __enter__(self): return advance
    def __exit__(self, *error): return None

analysing.bar = Bar
sys.argv = ["gradstats", *sys.argv[1:]]
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_end_a_command_with_what_is_done_written(small_run, tmp_path, name):
    words = ["replay", small_run, "--steps", ":20", "--out", tmp_path, "--compressors", "topk"]
    words += ["--ratios", "0.1", "--feedback", "ef"]
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED.format(signal=name))
    ((code, _, err),) = run_script([script, *words], tmp_path)
    line = f"interrupted: 5 of 20 rows are in {tmp_path}; the same command continues\n"
    assert (code, err) == (130, line)


def ignores_interrupts(_):
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.slow
def test_processes_of_a_pool_leave_ctrl_c_to_the_first_one():
    with workers(2) as pool:
        assert all(pool.map(ignores_interrupts, range(4)))


def sleep(seconds):
    time.sleep(seconds)


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_tasks_that_run(forked_pools):
    running = []

    def interrupted():
        with workers(2) as pool:
            running.append(pool.submit(sleep, 10 * PATIENCE))
            wait_until(running[0].running)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    wait_until(running[0].done)
