"""Work that was interrupted continues: tables are those of work in one piece, to the bit."""

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.compressors import COMPRESSORS, MEMORIES, compressor, compressors
from gradstats.compressors.wrappers.per_parameter import in_parts
from gradstats.fitting.resumable import fit_into
from gradstats.fitting.settings import FitSettings
from gradstats.replaying import folding, resumable, streams
from gradstats.replaying import run as replaying
from gradstats.replaying.folding import Given
from gradstats.replaying.into import replay_into
from gradstats.replaying.planning import Job
from gradstats.replaying.resumable import EQUAL_BITS, EqualBitsSettings, FactorisedSettings
from gradstats.replaying.settings import ReplaySettings
from gradstats.replaying.streams import Stream
from gradstats.runs import parts
from gradstats.runs.importing import import_gradients
from gradstats.runs.results import Results
from tests.conftest import small_gradients, write_run

FIT = FitSettings(families=("laplace", "normal"), ratios=(0.1, 0.01), kind="track")
SPECS = ("topk(0.1)", "randomk(0.1)", "ef21(topk(0.1))", "qsgd(bits=4)", "powersgd", "signum")
SPECS += ("velocity(topk(0.1))", "lowpass(topk(0.1))", "warmup(topk(0.1))", "acp-sgd")
REPLAY = ReplaySettings(SPECS, (0.1,), ("none", "ef"), ("model", "parameter"))
STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupted") / "run.zarr"
    grads = {step: small_gradients(step) for step in range(STEPS)}
    return write_run(path, grads, full=tuple(range(STEPS)), tracked=300)


class Interrupting:
    """Progress that is interrupted after a number of calls of some stages."""

    def __init__(self, calls, stage, error=KeyboardInterrupt):
        self.left, self.stage, self.error = calls, stage, error

    def __call__(self, stage, done, total):
        self.left -= stage.startswith(self.stage)
        if not self.left:
            self.left = -1
            raise self.error


def computed(monkeypatch, module, name):
    """The calls of a function, one entry each."""
    calls, original = [], getattr(module, name)

    def counted(*args, **keywords):
        calls.append(args)
        return original(*args, **keywords)

    monkeypatch.setattr(module, name, counted)
    return calls


def tables(folder, without=("timings", "methods")):
    """Every table of a folder; those that hold times are left out."""
    files = {path.stem: path for path in folder.glob("*.parquet")}
    return {name: pandas.read_parquet(path) for name, path in files.items() if name not in without}


def assert_same(folder, other):
    ours, theirs = tables(folder), tables(other)
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        pandas.testing.assert_frame_equal(table, theirs[name], check_exact=True, obj=name)
    assert not (folder / "parts").exists()


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    fit_into(gradstats.open(store), FIT, folder)
    return folder


@pytest.fixture(scope="module")
def replayed(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    replay_into(gradstats.open(store), REPLAY, folder, low_rank=FactorisedSettings())
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("calls", [1, 7, STEPS])
def test_a_fit_continues_after_the_row_at_which_it_was_interrupted(
    store, fitted, tmp_path, calls, error
):
    run = gradstats.open(store)
    with pytest.raises(error) as caught:
        fit_into(run, FIT, tmp_path, progress=Interrupting(calls, "fit", error))
    note = f"{calls} of 12 rows are in {tmp_path}; the same command continues"
    assert caught.value.__notes__ == [note]
    seen = []
    fit_into(run, FIT, tmp_path, progress=lambda stage, done, total: seen.append((stage, done)))
    assert [done for stage, done in seen if stage == "fit"] == [*range(calls + 1, 13)]
    assert_same(tmp_path, fitted)


@pytest.mark.parametrize("calls", [1, 3])
def test_ranks_continue(store, fitted, tmp_path, calls):
    run, seen = gradstats.open(store), []
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_into(run, FIT, tmp_path, progress=Interrupting(calls, "ranks"))
    assert caught.value.__notes__ == [
        f"what was finished is in {tmp_path}; the same command continues"
    ]
    fit_into(run, FIT, tmp_path, progress=lambda stage, done, total: seen.append((stage, done)))
    assert seen == [("ranks", done) for done in range(calls + 1, 13)]
    assert_same(tmp_path, fitted)


def test_a_fit_with_an_executor_continues(store, fitted, tmp_path):
    run = gradstats.open(store)
    with ThreadPoolExecutor(2) as executor, pytest.raises(KeyboardInterrupt):
        fit_into(run, FIT, tmp_path, executor=executor, progress=Interrupting(5, "fit"))
    with ThreadPoolExecutor(2) as executor:
        fit_into(run, FIT, tmp_path, executor=executor)
    assert_same(tmp_path, fitted)


def test_a_fit_over_steps_continues(store, tmp_path, monkeypatch):
    monkeypatch.setattr("gradstats.fitting.over_steps.BLOCK_VALUES", 50 * STEPS)
    run, whole, cut = gradstats.open(store), tmp_path / "whole", tmp_path / "cut"
    fit_into(run, FitSettings(), whole, axis="steps")
    with pytest.raises(KeyboardInterrupt):
        fit_into(run, FitSettings(), cut, axis="steps", progress=Interrupting(4, "over steps"))
    seen = []
    fit_into(run, FitSettings(), cut, axis="steps", progress=lambda *each: seen.append(each[1]))
    assert seen == [5, 6]
    assert_same(cut, whole)


@pytest.mark.slow
def test_a_replay_continues_with_its_memories_and_random_numbers(
    store, replayed, tmp_path, monkeypatch
):
    """Interrupted three times."""
    run = gradstats.open(store)
    low = {"low_rank": FactorisedSettings()}
    for calls, rows in ((1, 1), (99, 100), (30, 130)):
        with pytest.raises(KeyboardInterrupt) as caught:
            replay_into(run, REPLAY, tmp_path, **low, progress=Interrupting(calls, "replay"))
        (note,) = caught.value.__notes__
        assert note.startswith(f"{rows:,} of ")
        assert note.endswith(f" rows are in {tmp_path}; the same command continues")
    steps = computed(monkeypatch, streams, "advanced")
    replay_into(run, REPLAY, tmp_path, **low)
    total = len(pandas.read_parquet(replayed / "replay.parquet"))
    assert len(steps) <= total - rows  # skipped compressors have a row, and no step
    assert_same(tmp_path, replayed)


@pytest.mark.slow
def test_a_replay_of_several_workers_continues(tmp_path, monkeypatch):
    files = []
    for step, worker in itertools.product(range(6), range(2)):
        files.append(tmp_path / f"{step:02d}_{worker}.npz")
        grads = small_gradients(step + 100 * worker)
        np.savez(files[-1], **{name: grad.numpy() for name, grad in grads.items()})
    import_gradients(files, tmp_path / "run.zarr", workers=2).close()
    run = gradstats.open(tmp_path / "run.zarr")
    specs = ("randomk(0.1)", "ef21(topk(0.1))", "powersgd", "sign", "signum")
    settings = ReplaySettings(specs, (0.1,), ("none", "ef"), workers=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    replay_into(run, settings, whole)
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, cut, progress=Interrupting(14, "replay"))
    steps = computed(monkeypatch, streams, "advanced")
    replay_into(run, settings, cut)
    assert len(steps) == len(pandas.read_parquet(whole / "replay.parquet")) - 14
    assert_same(cut, whole)


def every_spec():
    """One spec of each compressor, and the memories."""
    bare = [member.spec for spec in COMPRESSORS for member in compressors(spec, (0.1,))]
    memories = [f"{name}(topk(0.1))" for name in (*MEMORIES, "warmup")]
    memories += ["ef(twoshot(sign))", "twoshot(threshold(0.1))", "ef(ring(qsgd))"]
    memories += ["twoshot(sidco-e(0.1))", "ef(twoshot(sidco-e(0.1) | qsgd))"]
    return [*bare, *memories, "adaquant(qsgd(bits=3))", "ef(adaquant(qsgd(bits=3)))"]


def gradients(workers):
    seeds = torch.Generator().manual_seed(3)
    return [
        Given.of(step, [torch.randn(256, generator=seeds) for _ in range(workers)], 5, {step: 1.0})
        for step in range(6)
    ]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("spec", every_spec())
def test_every_compressor_continues_bit_for_bit(spec, workers, tmp_path):
    part = gradstats.ratios.Part("w", 256, shape=(16, 16))
    made = compressor(spec)
    member = in_parts(made, (part,)) if "matrix" in made.contract.needs else made
    job = Job(member, "none", "model", "full")
    whole, cut = Stream(job), Stream.of(job, workers, tmp_path)
    for given in gradients(workers):
        whole.advance(given)
    for given in gradients(workers)[:3]:
        cut.advance(given)
    cut.write(workers)
    again = Stream.of(job, workers, tmp_path)
    assert again.position.done == 3
    for given in gradients(workers)[3:]:
        again.advance(given)
    assert [row["status"] for row in whole.rows] == ["ok"] * 6
    assert repr(again.rows) == repr(whole.rows)  # NaN included


def test_an_interrupt_inside_a_step_leaves_the_stream_before_it(monkeypatch):
    stream = Stream(Job(compressor("ef(topk(0.1))"), "ef", "model", "full"))
    first, second = gradients(1)[:2]
    stream.advance(first)
    before = stream.position.states[0].residual.clone()

    def interrupted(*args):
        folding_measure(*args)
        raise KeyboardInterrupt

    folding_measure = folding.measure
    monkeypatch.setattr(folding, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.advance(second)
    assert stream.position.done == len(stream.rows) == 1
    assert torch.equal(stream.position.states[0].residual, before)


def test_a_compressor_of_ones_own_begins_anew(tmp_path):
    class Mine(type(compressor("topk(0.1)"))):
        """A compressor whose code may change."""

    Mine.__module__ = "mine"
    job = Job(Mine(0.1), "none", "model", "full")
    stream = Stream.of(job, 1, tmp_path)
    stream.advance(gradients(1)[0])
    stream.write(1)
    assert not [*tmp_path.iterdir()]


def copied_when(folder, to, stage, calls):
    """Progress that copies a folder of results after some calls, as a killed process leaves it."""
    left = [calls]

    def progress(name, done, total):
        left[0] -= name.startswith(stage)
        if not left[0]:
            left[0] = -1
            shutil.copytree(folder, to)

    return progress


@pytest.fixture
def every_row(monkeypatch):
    """Parts are written after each row, as if each took ten seconds."""
    monkeypatch.setattr(parts, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(parts, "MOST_SHARE", float("inf"))


def test_a_killed_fit_continues_after_what_was_written_by_time(store, fitted, tmp_path, every_row):
    run, killed = gradstats.open(store), tmp_path / "killed"
    progress = copied_when(tmp_path / "run", killed, "fit", 8)
    fit_into(run, FIT, tmp_path / "run", progress=progress)
    seen = []
    fit_into(run, FIT, killed, progress=lambda stage, done, total: seen.append((stage, done)))
    assert seen[0] == ("fit", 9)
    assert_same(killed, fitted)


@pytest.mark.slow
def test_a_killed_replay_continues_after_what_was_written_by_time(
    store, replayed, tmp_path, every_row, monkeypatch
):
    run, killed = gradstats.open(store), tmp_path / "killed"
    progress = copied_when(tmp_path / "run", killed, "replay", 90)
    low = {"low_rank": FactorisedSettings()}
    replay_into(run, REPLAY, tmp_path / "run", **low, progress=progress)
    steps = computed(monkeypatch, streams, "advanced")
    replay_into(run, REPLAY, killed, **low)
    assert len(steps) <= len(pandas.read_parquet(replayed / "replay.parquet")) - 89
    assert_same(killed, replayed)


def test_work_is_written_every_ten_seconds_or_less_often_where_writing_is_slow(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    pace = parts.Pace()
    now[0] = 109.9
    assert not pace.due
    now[0] = 110.0
    assert pace.due
    with pace.kept():
        now[0] = 113.0  # three seconds to write: a tenth of the next thirty
    now[0] = 142.9
    assert not pace.due
    now[0] = 143.0
    assert pace.due


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_damaged_parts_are_made_again(store, fitted, tmp_path, every_row, damage):
    run, seen = gradstats.open(store), []
    with pytest.raises(KeyboardInterrupt):
        fit_into(run, FIT, tmp_path, progress=Interrupting(9, "fit"))
    third = sorted((tmp_path / "parts" / "fits").glob("*.part"))[2]
    content = bytearray(third.read_bytes())
    content[len(content) // 2] ^= 1
    third.write_bytes(content if damage is None else damage)
    fit_into(run, FIT, tmp_path, progress=lambda stage, done, total: seen.append((stage, done)))
    assert seen[0] == ("fit", 3)
    assert_same(tmp_path, fitted)


def test_damaged_streams_are_made_again(store, tmp_path, monkeypatch):
    run, settings = gradstats.open(store), ReplaySettings(("topk(0.1)", "sign"), feedback="ef")
    replay_into(run, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, tmp_path / "cut", progress=Interrupting(10, "replay"))
    one, _ = sorted((tmp_path / "cut" / "parts" / "replay").glob("*.stream"))
    one.write_bytes(one.read_bytes()[:-9])
    steps = computed(monkeypatch, streams, "advanced")
    replay_into(run, settings, tmp_path / "cut")
    assert len(steps) == STEPS + STEPS - 5
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_other_settings_do_not_take_the_parts(store, tmp_path, monkeypatch):
    run, settings = gradstats.open(store), ReplaySettings(("randomk(0.1)",), seed=1)
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, tmp_path, progress=Interrupting(5, "replay"))
    other = ReplaySettings(("randomk(0.1)",), seed=2)
    replay_into(run, other, tmp_path)
    replay_into(run, other, tmp_path / "fresh")
    assert_same(tmp_path, tmp_path / "fresh")


def test_other_compressors_leave_the_parts(store, tmp_path, monkeypatch):
    run, settings = gradstats.open(store), ReplaySettings(("ef(topk(0.1))", "sign"))
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, tmp_path, progress=Interrupting(6, "replay"))
    replay_into(run, ReplaySettings(("bf16",)), tmp_path)
    steps = computed(monkeypatch, streams, "advanced")
    replay_into(run, settings, tmp_path)
    assert len(steps) == 2 * STEPS - 6
    assert not (tmp_path / "parts").exists()


def test_timings_that_are_there_are_not_measured_again(store, tmp_path, monkeypatch):
    run, settings = gradstats.open(store), ReplaySettings(("topk(0.1)", "bf16", "sign"))
    original, calls = replaying.time_compressor, []

    def third(*args, **keywords):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **keywords)

    monkeypatch.setattr(replaying, "time_compressor", third)
    with pytest.raises(KeyboardInterrupt):
        replay_into(run, settings, tmp_path)
    before = pandas.read_parquet(tmp_path / "timings.parquet")
    assert len(before) == 2
    replay_into(run, settings, tmp_path)
    assert len(calls) == 3 + 4
    after = pandas.read_parquet(tmp_path / "timings.parquet")
    assert after["encode_seconds"][:2].tolist() == before["encode_seconds"].tolist()


def test_equal_bits_continue(store, tmp_path, monkeypatch):
    run = gradstats.open(store)
    settings = EqualBitsSettings(("topk", "qsgd", "sign", "bf16"), (0.1, 0.01), 0)
    whole, cut = Results(run, tmp_path / "whole"), Results(run, tmp_path / "cut")
    whole.ensure(EQUAL_BITS, settings)
    cut.progress = Interrupting(3, "equal bits")
    with pytest.raises(KeyboardInterrupt):
        cut.ensure(EQUAL_BITS, settings)
    calls = computed(monkeypatch, resumable, "equal_bits_rows")
    cut.ensure(EQUAL_BITS, settings)
    assert [spec for _, spec, *_ in calls] == ["sign", "bf16"]
    assert_same(tmp_path / "cut", tmp_path / "whole")
