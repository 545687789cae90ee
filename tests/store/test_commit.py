"""A row is there or not there, whatever happens to the writer."""

import errno
import fcntl
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
import torch
import zarr

from gradstats.store import (
    GradientStore,
    Row,
    StoreFormatError,
    files,
    growing,
    layout,
    parameter_table,
    writing,
)
from tests.waiting import PATIENCE

TABLE = parameter_table([("w", (100, 50), "float32"), ("b", (300,), "bfloat16")])
IDS = {"float32": np.arange(0, 5000, 7)}
KILLS = 12


def row(step, kind):
    """The row that every process makes of a step, and of nothing else."""
    generator = torch.Generator().manual_seed(step)
    flat = {p.dtype: torch.randn(p.numel, generator=generator) for p in TABLE}
    flat["bfloat16"] = flat["bfloat16"].bfloat16()
    if kind == "track":
        flat = {"float32": flat["float32"][torch.from_numpy(IDS["float32"])]}
    return Row(step, flat, np.array([True, step % 3 == 0]), {"loss": step / 8})


def write_until_killed(path, acknowledge):
    store = GradientStore.create(path, TABLE, if_exists="resume")
    store.set_track(IDS)
    step = len(store.stream())
    while True:
        if len(store.stream(0, "track")) == step:  # else the last kill fell between the two
            store.append_rows([row(step, "track")], kind="track")
        store.append_rows([row(step, "full")])
        acknowledge.send(step)
        step += 1


def assert_rows_are_exact(path, at_least):
    store = GradientStore.open(path)
    for kind in ("full", "track"):
        stream = store.stream(0, kind)
        assert len(stream) >= at_least
        assert stream.steps.tolist() == list(range(len(stream)))
        assert stream.coordinates["loss"].tolist() == [step / 8 for step in range(len(stream))]
        assert stream.present[:, 1].tolist() == [step % 3 == 0 for step in range(len(stream))]
        for step in range(len(stream)):
            expected = row(step, kind).flat
            assert torch.equal(stream.read(step, "w").flatten(), expected["float32"])
            if kind == "full" and step % 3 == 0:
                assert torch.equal(stream.read(step, "b"), expected["bfloat16"])


def assert_plain_zarr_agrees(path):
    group = zarr.open(str(path), mode="r")["worker_0"]
    for prefix in ("", "track/"):
        rows = group[prefix + "step"].shape[0]
        for name in ("grad_float32", "present", "loss", "segment"):
            assert group[prefix + name].shape[0] == rows


@pytest.mark.skipif(not hasattr(files, "fcntl"), reason="needs POSIX signals and locks")
@pytest.mark.slow
def test_sigkill_at_any_instant_loses_no_acknowledged_row(tmp_path):
    path = tmp_path / "run.zarr"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "gradstats.store"])
    rng = np.random.default_rng(11)
    acknowledged = -1
    for _ in range(KILLS):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=write_until_killed, args=(path, theirs), daemon=True)
        child.start()
        theirs.close()
        assert ours.poll(PATIENCE), "the child wrote no row"
        time.sleep(rng.uniform(0, 0.04))
        child.kill()
        child.join()
        try:
            while True:
                acknowledged = ours.recv()
        except EOFError:
            pass
        assert_rows_are_exact(path, acknowledged + 1)
        assert_plain_zarr_agrees(path)
    assert acknowledged >= KILLS - 1
    with GradientStore.create(path, TABLE, if_exists="resume") as store:
        store.claim()
    assert_swept(path)


def assert_swept(path):
    """No file beyond what is committed, and every array says its length itself."""
    store = GradientStore.open(path)
    assert not list(path.rglob("*.partial"))
    for kind, folder in (("full", "worker_0"), ("track", "worker_0/track")):
        stream = store.stream(0, kind)
        vectors = stream.arrays["grad_float32"]
        committed = -(-len(stream) // vectors.chunks[0])
        assert len(list((path / folder / "grad_float32").glob("c.*"))) == committed
        for name, array in stream.arrays.items():
            alone = zarr.open_array(str(path / folder / name), mode="r")
            assert alone.shape == array.shape


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 32])
def test_a_failed_write_anywhere_in_an_append_leaves_the_last_row(tmp_path, monkeypatch, rows):
    """Fail the first write of an append, then the second, ... until one append succeeds.

    A chunk of vectors holds one row, two or more.
    """
    monkeypatch.setattr(layout, "CHUNK_ROWS", rows)
    store = GradientStore.create(tmp_path / "run.zarr", TABLE)
    store.set_track(IDS)
    store.append_rows([row(0, "full")])
    store.append_rows([row(0, "track")], kind="track")
    real, failures = files.write_all, 0
    for failing in range(100):
        countdown = iter(range(failing, -1, -1))

        def full_disk(file, part, countdown=countdown):
            if next(countdown, 0) == 0:
                real(file, part[: len(part) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file, part)

        for module in (files, growing):
            monkeypatch.setattr(module, "write_all", full_disk)
        try:
            store.append_rows([row(1, "full"), row(2, "full")])
        except OSError:
            failures += 1
            assert_rows_are_exact(tmp_path / "run.zarr", 1)
            assert len(store.stream()) == 1
            continue
        break
    assert failures > 10  # vectors, coordinates, the commit itself
    for module in (files, growing):
        monkeypatch.setattr(module, "write_all", real)
    assert len(store.stream()) == 3  # only copies of the metadata failed
    store.append_rows([row(3, "full")])
    store.append_rows([row(s, "track") for s in (1, 2, 3)], kind="track")
    assert_rows_are_exact(tmp_path / "run.zarr", 4)
    store.close()
    with GradientStore.open(tmp_path / "run.zarr", "a") as store:
        store.claim()
    assert_swept(tmp_path / "run.zarr")


def test_an_interrupt_just_after_a_commit_leaves_its_row(tmp_path, monkeypatch):
    """Ctrl-C between the commit and the writer's own knowledge of it: the next row follows it."""
    store = GradientStore.create(tmp_path / "run.zarr", TABLE)
    store.append_rows([row(0, "full")])
    real = files.replace_file

    def interrupted(path, *parts):
        real(path, *parts)
        if path.parent.name == "worker_0":
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.append_rows([row(1, "full")])
    monkeypatch.setattr(writing, "replace_file", real)
    with pytest.raises(ValueError, match="step"):
        store.append_rows([row(1, "full")])
    store.append_rows([row(2, "full")])
    store.close()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    assert stream.steps.tolist() == [0, 1, 2]
    for step in range(3):
        expected = row(step, "full").flat["float32"]
        assert torch.equal(stream.read(step, "w").flatten(), expected)


class ShortWrites:
    """A file that takes three bytes at a time, as a full disk or 2 GiB may."""

    def __init__(self):
        self.taken = b""

    def write(self, view):
        self.taken += bytes(view[:3])
        return len(view[:3])


def test_what_is_written_in_parts_is_whole():
    file = ShortWrites()
    files.write_all(file, np.arange(5, dtype=np.int16).data)
    assert file.taken == np.arange(5, dtype=np.int16).tobytes()


@pytest.mark.parametrize("write", [files.replace_file, files.write_file])
def test_what_cannot_be_written_whole_leaves_nothing_behind(tmp_path, monkeypatch, write):
    def full_disk(file, part):
        file.write(part[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "c.0", b"abc")
    assert list(tmp_path.iterdir()) == []


def test_a_file_being_replaced_is_the_old_or_the_new_one_to_readers(tmp_path):
    file, done, seen = tmp_path / "zarr.json", threading.Event(), set()
    versions = [bytes([n]) * 1_000_000 for n in range(2)]
    files.replace_file(file, versions[0])

    def look():
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for n in range(200):
        files.replace_file(file, versions[n % 2])
    done.set()
    reader.join()
    assert seen <= set(versions)


def test_leftovers_are_ignored_then_swept(tmp_path):
    path = tmp_path / "run.zarr"
    with GradientStore.create(path, TABLE) as store:
        store.set_track(IDS)
        store.append_rows([row(0, "full")])
        store.append_rows([row(0, "track")], kind="track")
    worker = path / "worker_0"
    lagging = (worker / "grad_float32/zarr.json").read_bytes()
    leftovers = ["grad_float32/c.1.0", "track/grad_float32/c.7.0", "step/c.1", "zarr.json.partial"]
    for name in leftovers:
        (worker / name).write_bytes(b"junk")
    (worker / "grad_float32/zarr.json").write_bytes(lagging.replace(b"[1,5000]", b"[0,5000]"))
    (worker / "weight_float32").mkdir()
    (worker / "ragged/notes").mkdir(parents=True)
    (worker / "ragged/notes/c.5").write_bytes(b"of a later version")
    assert_rows_are_exact(path, 1)
    with GradientStore.open(path, "a") as store:
        store.claim()
        assert not any((worker / name).exists() for name in leftovers)
        assert not (worker / "weight_float32").exists()
        assert (worker / "grad_float32/zarr.json").read_bytes() == lagging
        assert (worker / "ragged/notes/c.5").exists()
        store.append_rows([row(1, "full")])
    assert_swept(path)


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    path = tmp_path / "run.zarr"
    with GradientStore.create(path, TABLE) as first:
        first.append_rows([row(0, "full")])
        with GradientStore.open(path, "a") as second:
            message = rf"worker 0 of .*this process \({os.getpid()}\) .*gradstats\.close_all\(\)"
            with pytest.raises(BlockingIOError, match=message):
                second.append_rows([row(1, "full")])
            second.append_rows([row(0, "full")], worker=1)
        with pytest.raises(BlockingIOError):
            GradientStore.create(path, TABLE, if_exists="overwrite")
    with GradientStore.open(path, "a") as second:
        second.append_rows([row(1, "full")])
        assert len(second.stream()) == 2


def test_a_process_of_the_same_number_elsewhere_is_another_one(tmp_path):
    """In containers that share a folder every training may be process 1."""
    path = tmp_path / ".lock"
    held = open(path, "a+")  # as by another process: not among the locks that this one knows
    fcntl.flock(held, fcntl.LOCK_EX)
    held.write(f"{os.getpid()}\n")
    held.flush()
    with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} is writing there; wait"):
        files.take_lock(path, "worker 0")
    held.close()


def test_what_is_at_the_path_is_resumed_or_overwritten_only_when_asked(tmp_path):
    path = tmp_path / "run.zarr"
    with GradientStore.create(path, TABLE, provenance={"seed": 0}) as store:
        store.append_rows([row(0, "full")])
    with pytest.raises(FileExistsError, match=r"if_exists='resume'"):
        GradientStore.create(path, TABLE)
    other = parameter_table([("w", (100, 50), "float32"), ("b", (300,), "float16")])
    with pytest.raises(
        ValueError, match=r"parameter 'b' is b bfloat16 \[300\] there and b float16"
    ):
        GradientStore.create(path, other, if_exists="resume")
    with pytest.raises(ValueError, match="parameter 'b' is only there"):
        GradientStore.create(path, TABLE[:1], if_exists="resume")
    with pytest.raises(ValueError, match="if_exists must be"):
        GradientStore.create(path, if_exists="append")
    with GradientStore.create(path, TABLE, if_exists="resume") as store:
        assert len(store.stream()) == 1
    with GradientStore.create(path, other, if_exists="overwrite") as store:
        assert store.workers == ()
        assert (store.parameters, store.provenance) == (other, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(StoreFormatError, match="not a gradstats store"):
        GradientStore.create(tmp_path / "mine", TABLE, if_exists="overwrite")
    assert (tmp_path / "mine/thesis.tex").exists()
