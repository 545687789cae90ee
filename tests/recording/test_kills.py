"""SIGKILL at any instant: the store opens, completed rows are exact, and the training resumes."""

import os
import signal
import time

import numpy as np
import pytest
import zarr

from gradstats.store import GradientStore, parameter_table
from tests.processes import heard, soaked
from tests.recording import victims
from tests.recording.exact import check_exact
from tests.recording.victims import PATIENCE, STEPS, STRIDE, Launch

pytestmark = pytest.mark.slow

KINDS = ("full", "track", "summary")
WAYS = [
    {"points": ("reduced",)},
    {"points": ("local", "reduced", "clipped")},
    {"points": ("reduced", "clipped"), "summary": False},
    {"points": ("local", "reduced", "clipped"), "odd": True},
    {"points": ("outer",)},
    {"points": ("reduced", "outer")},
]


@pytest.fixture
def processes(process):
    """Starts the workers of a training."""

    def start(path, launch):
        meeting = path.with_name(f"meeting{launch.seed}")
        workers = range(launch.world)
        started = [process(victims.train, path, launch, rank, meeting) for rank in workers]
        return [child for child, _ in started], [ours for _, ours in started]

    return start


def last_words(pipe):
    """(Rows it said are stored, whether it closed) of a training that ends."""
    stored, closed = (0, 0, 0), False
    while (word := heard(pipe)) is not None:
        stored = word if isinstance(word, tuple) else stored
        closed = closed or word == "closed"
    return stored, closed


def kill_somewhere(running, pipes, killed, rng):
    """Kill some workers: a third of them while they attach or close, else after any step.

    Returns how many it hit before they had ended.
    """
    assert [heard(pipe) for pipe in pipes] == ["ready"] * len(pipes)
    steps = rng.choice([0, STEPS]) if rng.uniform() < 1 / 3 else rng.integers(1, STEPS)
    for _ in range(steps):
        heard(pipes[killed[0]])
    time.sleep(rng.uniform(0, 0.05))
    for victim in killed:
        running[victim].kill()
    for victim in killed:
        running[victim].join(PATIENCE)
    return sum(running[victim].exitcode == -signal.SIGKILL for victim in killed)


def next_segment(path):
    """The segment that the next launch begins; 0 where no row is stored."""
    if not (path / "zarr.json").exists():
        assert not any(path.rglob("worker_*"))
        return 0
    store = GradientStore.open(path)
    segments = [
        stream.coordinates["segment"].max()
        for worker in store.workers
        for stream in streams(store, worker).values()
        if len(stream)
    ]
    return int(max(segments, default=-1)) + 1


def streams(store, worker):
    found = {}
    for kind in KINDS:
        try:
            found[kind] = store.stream(worker, kind)
        except LookupError:
            assert kind != "full"
    return found


def verify(path, launches, stored):
    """Compare every row with its gradient; the number of rows.

    Args:
        launches: by segment.
        stored: by (segment, worker), the rows that a training said are stored, by kind.
    """
    store, rows = GradientStore.open(path), 0
    for worker in store.workers:
        for kind, stream in streams(store, worker).items():
            segments = stream.coordinates["segment"]
            assert set(segments) <= set(launches)
            assert (np.diff(segments) >= 0).all()
            for segment, launch in launches.items():
                here = np.flatnonzero(segments == segment)
                said = stored.get((segment, worker), (0, 0, 0))[KINDS.index(kind)]
                assert len(here) >= said, (kind, segment)
                check_rows(stream, here, launch, worker)
                rows += len(here)
    return rows


def check_rows(stream, rows, launch, worker):
    """Rows are the first of those that were due, and exact."""
    stride = STRIDE if stream.kind == "full" else 1
    due = [(step, p) for step in range(0, STEPS, stride) for p in launch.seen_by(worker)]
    facts = {name: values[rows].tolist() for name, values in stream.coordinates.items()}
    assert list(zip(facts["step"], facts["point"], strict=True)) == due[: len(rows)]
    check_exact(stream, rows, launch, worker)


def assert_swept(path):
    """No file beyond what is committed."""
    assert not list(path.rglob("*.partial"))
    for worker, group in zarr.open_group(str(path), mode="r").groups():
        for name, array in group.members(max_depth=None):
            if isinstance(array, zarr.Array):
                counts = [-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True)]
                committed = {array.metadata.encode_chunk_key(at) for at in np.ndindex(*counts)}
                there = {file.name for file in (path / worker / name).glob("c.*")}
                assert there == committed, (worker, name)


def ends(path, launch, start):
    """Let a training end by itself; what each worker said is stored."""
    running, pipes = start(path, launch)
    words = [last_words(pipe) for pipe in pipes]
    for process in running:
        process.join(PATIENCE)
    assert all(closed for _, closed in words)
    assert [process.exitcode for process in running] == [0] * len(running)
    return [stored for stored, _ in words]


@soaked("kills", 12, 60)
def test_sigkill_at_any_instant(tmp_path, processes, kills, record_property):
    """Two kills a store, then a training that ends: all of its rows are there."""
    rng = np.random.default_rng(5)
    verified = hit = 0
    for kill in range(0, kills, 2):
        path = tmp_path / f"{kill}.zarr"
        way, launches, stored = WAYS[kill // 2 % len(WAYS)], {}, {}
        for seed in (kill, kill + 1):
            launch = Launch(seed, **way)
            segment = next_segment(path)
            running, pipes = processes(path, launch)
            hit += kill_somewhere(running, pipes, [0], rng)
            launches[segment], stored[segment, 0] = launch, last_words(pipes[0])[0]
            if (path / "zarr.json").exists():
                verified += verify(path, launches, stored)
        segment, launch = next_segment(path), Launch(kills + kill, **way)
        launches[segment], stored[segment, 0] = launch, *ends(path, launch, processes)
        points = len(launch.points)
        due = [points * STEPS // STRIDE, points * STEPS, points * STEPS * launch.summary]
        assert list(stored[segment, 0]) == due
        verified += verify(path, launches, stored)
        assert_swept(path)
    assert hit >= 5 / 6 * kills
    record_property("kills", hit)
    record_property("rows verified", verified)


@soaked("kills", 3, 15)
def test_sigkill_of_workers(tmp_path, processes, kills, record_property):
    """Rank 0, rank 1 or both: the other ends by itself, and what each of them stored is exact."""
    rng, hit = np.random.default_rng(6), 0
    verified, path, launches, stored = 0, tmp_path / "run.zarr", {}, {}
    for kill in range(kills):
        killed = [[0], [1], [0, 1]][kill % 3]
        launch, segment = Launch(kill, ("local", "reduced"), world=2), next_segment(path)
        running, pipes = processes(path, launch)
        hit += kill_somewhere(running, pipes, killed, rng)
        said = [last_words(pipe)[0] for pipe in pipes]
        for process in running:
            process.join(PATIENCE)
            assert process.exitcode is not None
        launches[segment] = launch
        stored |= {(segment, rank): words for rank, words in enumerate(said)}
        if (path / "zarr.json").exists():
            verified += verify(path, launches, stored)
    segment, launch = next_segment(path), Launch(kills, ("local", "reduced"), world=2)
    launches[segment] = launch
    stored |= {(segment, rank): words for rank, words in enumerate(ends(path, launch, processes))}
    assert stored[segment, 0] == (STEPS, 2 * STEPS, 2 * STEPS)
    assert stored[segment, 1] == (STEPS // STRIDE, STEPS, STEPS)
    verified += verify(path, launches, stored)
    assert_swept(path)
    record_property("kills", hit)
    record_property("rows verified", verified)


def test_children_of_a_killed_training_do_not_hold_its_store(tmp_path, process):
    training, pipe = process(victims.leave_a_child, tmp_path / "run.zarr")
    child = heard(pipe)
    try:
        training.kill()
        training.join()
        os.kill(child, 0)  # it is alive
        with GradientStore.open(tmp_path / "run.zarr", "a") as store:
            store.claim()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("alive", [0, 1])
@pytest.mark.parametrize("if_exists", ["resume", "overwrite"])
def test_no_worker_of_a_second_run_writes_where_the_first_does(
    tmp_path, process, alive, if_exists
):
    """Whichever worker of the first is alive, and though the second has one more than it."""
    path, layout = (
        tmp_path / "run.zarr",
        [("weight", (2, 3), "float32"), ("bias", (2,), "float32")],
    )
    table = parameter_table(layout, module_types=dict.fromkeys(("weight", "bias"), "Linear"))
    with GradientStore.create(path, table) as first:
        first.claim(alive)
        meeting = tmp_path / "meeting"
        pipes = [process(victims.intrude, path, rank, meeting, if_exists)[1] for rank in (0, 1)]
        told = [heard(pipe) for pipe in pipes]
        assert told[0].startswith("BlockingIOError: cannot write")
        assert told[1].startswith("RuntimeError: cannot record: on rank 0, BlockingIOError")
        assert GradientStore.open(path).workers == (alive,)
