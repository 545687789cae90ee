"""When, how much and how often a recording writes, and what it says about it."""

import numpy as np
import pytest
from torch import nn

from gradstats.recording import capture, every, window
from gradstats.recording.stats import Stats
from gradstats.store import GradientStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def test_a_restart_is_a_new_segment(path, make_training, read):
    settings = {"full": every(2), "track": 9, "if_exists": "resume"}
    for _ in range(3):
        again = make_training()
        with capture(again.model, again.optimizer, path, **settings):
            for _ in range(3):
                again.step()
    assert read(path).coordinates["segment"].tolist() == [0, 0, 1, 1, 2, 2]
    assert read(path, "track").steps.tolist() == [0, 1, 2] * 3
    assert read(path, "track").coordinates["segment"].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_restart_may_record_less(path, make_training, read):
    for settings in ({"full": every(1), "track": 9}, {"track": 0}, {"full": None, "track": 9}):
        again = make_training()
        with capture(again.model, again.optimizer, path, if_exists="resume", **settings):
            again.step()
    assert read(path).coordinates["segment"].tolist() == [0, 1]
    assert read(path, "track").coordinates["segment"].tolist() == [0, 2]


def test_an_existing_store_is_neither_replaced_nor_mixed_unasked(path, training, read):
    def start(**settings):
        return capture(training.model, training.optimizer, path, **settings)

    with start(track=9):
        training.step()
    with pytest.raises(FileExistsError, match=r"run\.zarr.*resume.*overwrite"):
        start(track=9)
    with pytest.raises(ValueError, match="tracks other elements already"):
        start(track=9, seed=1, if_exists="resume")
    with pytest.raises(ValueError, match="cannot resume"):
        start(track=9, parameters="*.bias", if_exists="resume")
    assert len(read(path, "track")) == 1
    with start(track=5, seed=1, if_exists="overwrite"):
        pass
    assert len(read(path, "track")) == 0
    assert not training.optimizer._optimizer_step_pre_hooks


def test_two_recordings_of_one_path_are_refused(path, training):
    with capture(training.model, training.optimizer, path):
        with pytest.raises(BlockingIOError, match="is writing"):
            capture(training.model, training.optimizer, path, if_exists="resume")
        training.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"full": None, "track": 0}, "track must be on .* both off, got 0"),
        ({"full": None, "track": None}, "track must be on .* both off, got None"),
        ({"track": -1}, "track must be a number of elements from 1, or 0 for none, got -1"),
        ({"track": "many"}, "track must be"),
        ({"full": 500}, "full must be a schedule"),
        ({"max_bytes": "lots"}, "max_bytes must be a positive size"),
        ({"max_bytes": "500kB"}, "max_bytes must leave room for one row"),
        ({"parameters": "conv*"}, r"names: 0\.weight"),
        ({"if_exists": "maybe"}, "if_exists must be"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(path, training, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        capture(training.model, training.optimizer, path, **settings)
    assert not path.exists()


def test_close_may_be_repeated_and_detaches(path, training, capsys):
    cap = capture(training.model, training.optimizer, path)
    training.step()
    cap.close()
    cap.close()
    cap.log(loss=3.0)
    training.step()
    assert not training.optimizer._optimizer_step_pre_hooks
    assert cap.stats.tracked_rows == 1
    assert capsys.readouterr().err.count("full rows + ") == 1


def test_a_recording_says_what_it_will_take_and_took(path, training, capsys):
    with capture(training.model, training.optimizer, path, full=every(4), track=20):
        text = capsys.readouterr().err
        for part in ("4 parameters", "157 elements", "628 B at every(4)", "20 elements", "80 B"):
            assert part in text
        for part in ("at most 20 GB", " free", "point 'reduced'", "run.zarr"):
            assert part in text
        for _ in range(5):
            training.step()
    text = capsys.readouterr().err
    assert "2 full rows + 5 tracked steps, 1.66 kB, 0 dropped, " in text
    assert "% of training time" in text


@pytest.mark.parametrize(("seconds", "percent"), [(0.0123, "1.2"), (0.1234, "12"), (1.0, "100")])
def test_a_share_of_the_time_is_written_as_people_do(seconds, percent):
    text = str(Stats(seconds=seconds, training_seconds=1.0))
    assert text.endswith(f" dropped, {percent} % of training time")


def test_quiet_is_quiet(path, training, capsys):
    with capture(training.model, training.optimizer, path, quiet=True):
        training.step()
    assert capsys.readouterr() == ("", "")


def test_steps_that_are_not_due_do_nothing(path, training, read, monkeypatch):
    looked_at = []
    schedule = window(5, 7)
    with capture(training.model, training.optimizer, path, full=schedule, track=0) as cap:
        guarded = cap._guard.step
        monkeypatch.setattr(
            cap._guard, "step", lambda step, work: (looked_at.append(step), guarded(step, work))
        )
        for _ in range(20):
            cap.log(loss=training.step())
    # the step after them hands the last row over
    assert looked_at == [5, 6, 7]
    assert read(path).steps.tolist() == [5, 6]
    assert read(path).coordinates["loss"].tolist() == training.losses[5:7]


def test_the_store_never_outgrows_max_bytes(path, make_training, capsys, read):
    training = make_training(model=nn.Linear(12, 2000))
    limit = 2_600_000
    settings = {"full": every(1), "track": 100, "max_bytes": limit, "quiet": True}
    with capture(training.model, training.optimizer, path, **settings) as cap:
        for _ in range(400):
            training.step()
    assert GradientStore.open(path).nbytes <= limit
    stats = cap.stats
    assert stats.tracked_rows + stats.dropped >= 400
    assert stats.full_rows + stats.thinned <= 400
    gaps = np.diff(read(path).steps)
    assert gaps[0] == 1
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] >= 4
    text = capsys.readouterr().err
    assert text.count("full rows come half as often") == 1


def test_other_processes_of_a_group_leave_it_to_rank_0(path, training, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with capture(training.model, training.optimizer, path) as cap:
        cap.log(loss=training.step())
        assert (cap.step, cap.stats.full_rows) == (0, 0)
    assert not path.exists()
    assert not training.optimizer._optimizer_step_pre_hooks
