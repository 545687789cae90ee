"""Recordings into an object store, whose connection may be lost at any time."""

import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gradstats
from gradstats.cli import app as cli
from gradstats.recording import capture, every
from gradstats.recording.script.command import run_command
from gradstats.recording.settings import CaptureSettings
from gradstats.store import GradientStore, as_place, spool
from tests.processes import run_workers
from tests.recording.test_command import SCRIPT, train_in_this_process
from tests.recording.workers import STEPS, expected, work
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_recording_into_an_object_store_is_exact(url, training, capfd):
    with capture(training.model, training.optimizer, url, full=every(2), track=50) as cap:
        for _ in range(9):
            cap.log(loss=training.step())
    assert cap.stats.full_rows == 5
    assert cap.stats.unsent == cap.stats.dropped == 0
    run = gradstats.open(url)
    assert [step for step, _ in run.gradients()] == [0, 2, 4, 6, 8]
    for step, grad in run.gradients():
        assert torch.equal(grad, training.flat(step))
    ids = torch.from_numpy(run.stream("track").element_ids["float32"])
    assert len(run.rows("track")) == 9
    for step, grad in run.gradients("track"):
        assert torch.equal(grad, training.flat(step)[ids])
    said = capfd.readouterr().err
    assert f"recording to {url}" in said
    assert "by way of which they are sent" in said


def test_a_lost_connection_is_said_once_and_training_goes_on(url, server, training, capfd):
    with capture(training.model, training.optimizer, url, full=every(1)) as cap:
        for step in range(12):
            if step == 4:
                server.stop()
            if step == 8:
                wait_until(lambda: cap.stats.unsent and cap._writer._store.fault)
                server.start()
            training.step()
    assert cap.stats.dropped == cap.stats.unsent == 0
    for step, grad in gradstats.open(url).gradients():
        assert torch.equal(grad, training.flat(step))
    said = capfd.readouterr().err
    assert said.count("cannot reach s3://bucket") == 1
    assert "rows wait in" in said


def test_rows_that_never_arrived_are_counted_and_can_be_sent(
    url, server, training, capfd, monkeypatch
):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    with capture(training.model, training.optimizer, url, full=every(1), track=None) as cap:
        training.step()
        training.step()
        wait_until(lambda: cap.stats.full_rows and not cap.stats.unsent)
        server.stop()
        for _ in range(3):
            training.step()
    server.start()
    said = capfd.readouterr().err
    assert cap.stats.unsent == 4
    assert "4 not sent" in said
    folder, place = re.search(r"sends them, or: gradstats copy (\S+) (\S+)", said).groups()
    assert place == url
    assert len(gradstats.open(url).rows()) == 1
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("GRADSTATS_SPOOL", str(Path(folder).parent / "another"))
        refused = CliRunner().invoke(cli.app, ["copy", folder, url])
        assert "set GRADSTATS_SPOOL=" in str(refused.exception)
    done = CliRunner().invoke(cli.app, ["copy", folder, url])
    assert done.exit_code == 0, done.output
    assert "4 rows" in done.output
    for step, grad in gradstats.open(url).gradients():
        assert torch.equal(grad, training.flat(step))
    assert len(gradstats.open(url).rows()) == 5
    assert not Path(folder).exists()


def test_a_restarted_training_adds_a_segment(url, make_training):
    for segment in range(2):
        training = make_training()
        how = "resume" if segment else "error"
        with capture(
            training.model,
            training.optimizer,
            url,
            full=every(1),
            if_exists=how,
            start_step=segment,
        ):
            for _ in range(3):
                training.step()
    coordinates = GradientStore.open(url).stream().coordinates
    assert coordinates["segment"].tolist() == [0, 0, 0, 1, 1, 1]
    assert coordinates["step"].tolist() == [0, 1, 2, 1, 2, 3]


def test_two_workers_write_one_run(url, tmp_path):
    ends = run_workers(work, 2, tmp_path, "ddp_points", url)
    assert [code for code, _, _ in ends] == [0, 0], ends
    store = GradientStore.open(url)
    assert store.workers == (0, 1)
    for rank in range(2):
        run = gradstats.open(url, worker=rank, point="local")
        found = torch.stack([grad for _, grad in run.gradients()])
        assert torch.equal(found, expected(rank, "local", 2, limit=0.05)[: len(found)])
        assert len(found) == STEPS


def test_a_command_records_into_an_object_store(url, tmp_path, capfd):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    train_in_this_process(url, full=every(1), track=10)
    assert len(gradstats.open(url).rows()) == 1
    with pytest.raises(FileExistsError, match="it exists"):
        run_command(command, CaptureSettings(), out=url)
    settings = CaptureSettings(full=every(4), track=10, if_exists="overwrite")
    assert run_command(command, settings, out=url) == 0
    assert len(gradstats.open(url).rows()) == 3


def test_every_command_reads_a_url(url, training, tmp_path, monkeypatch):
    with capture(training.model, training.optimizer, url, full=every(5), track=100):
        for _ in range(11):
            training.step()
    monkeypatch.chdir(tmp_path)
    for words in (
        ["info", url],
        ["fit", url, "--families", "laplace", "--ratios", "0.1", "--jobs", "2"],
        ["replay", url, "--compressors", "topk", "--ratios", "0.1"],
    ):
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, done.output
    name = url.rpartition("/")[2].removesuffix(".zarr")
    assert (tmp_path / f"{name}.results" / "replay.parquet").exists()


def test_rows_left_behind_keep_their_segment(url, server, make_training, monkeypatch):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    for segment in range(3):
        training = make_training()
        settings = {"full": every(1), "if_exists": "resume", "track": None}
        with capture(training.model, training.optimizer, url, **settings) as cap:
            training.step()
            if segment == 1:
                server.stop()
            training.step()
        if segment == 1:
            assert cap.stats.unsent
            server.start()
    assert cap.stats.unsent == cap.stats.dropped == 0
    coordinates = GradientStore.open(url).stream().coordinates
    assert coordinates["segment"].tolist() == [0, 0, 1, 1, 2, 2]


def test_an_attach_that_fails_gives_the_object_store_back(url, training, monkeypatch):
    def broken(*_):
        raise ArithmeticError

    with monkeypatch.context() as patch:
        patch.setattr("gradstats.recording.capturing.register", broken)
        with pytest.raises(ArithmeticError):
            capture(training.model, training.optimizer, url, full=every(1), track=0)
    assert not as_place(url).exists()
    with capture(training.model, training.optimizer, url, full=every(1), track=0):
        training.step()
    assert torch.equal(gradstats.open(url).read(0), training.flat(0))
