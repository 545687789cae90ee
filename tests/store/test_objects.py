"""Stores in an object store, held against an S3-compatible server on the loopback interface."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gradstats.store import GradientStore, Row, StoreFormatError, layout, parameter_table, spool
from gradstats.store.objects import InObjects
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

obstore = pytest.importorskip("obstore", reason="needs obstore (the cloud extra)")

TABLE = parameter_table([("w", (100, 50), "float32"), ("b", (300,), "bfloat16")])
IDS = {"float32": np.arange(0, 5000, 7)}


def row(step, kind="full"):
    """The row that every test makes of a step, and of nothing else."""
    generator = torch.Generator().manual_seed(step)
    flat = {p.dtype: torch.randn(p.numel, generator=generator) for p in TABLE}
    flat["bfloat16"] = flat["bfloat16"].bfloat16()
    if kind == "track":
        flat = {"float32": flat["float32"][torch.from_numpy(IDS["float32"])]}
    return Row(step, flat, np.array([True, True]), {"loss": step / 8})


def append(store, steps):
    for step in steps:
        store.append_rows([row(step, "track")], kind="track")
        store.append_rows([row(step)])


def check(path, steps):
    store = GradientStore.open(path)
    for kind in ("full", "track"):
        stream = store.stream(0, kind)
        assert stream.steps.tolist() == list(steps)
        assert stream.coordinates["loss"].tolist() == [step / 8 for step in steps]
        for index, step in enumerate(steps):
            expected = row(step, kind).flat
            assert torch.equal(stream.read(index, "w").flatten(), expected["float32"])
            if kind == "full":
                assert torch.equal(stream.read(index, "b"), expected["bfloat16"])


def created(url, **settings):
    store = GradientStore.create(url, TABLE, provenance={"made": "here"}, **settings)
    store.set_track(IDS)
    return store


def test_rows_arrive_and_nothing_stays_behind(url, tmp_path):
    with created(url) as store:
        append(store, range(5))
        assert store.fault == ""
    assert store.unsent == 0
    check(url, range(5))
    assert GradientStore.open(url).provenance == {"made": "here"}
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_arrives_is_the_store_that_a_folder_would_be(url, server, tmp_path, monkeypatch):
    folder = tmp_path / "run.zarr"
    monkeypatch.setattr(layout, "CHUNK_ROWS", 1)  # in an object store no row shares a chunk
    with created(url, run="one") as store, created(folder, run="one") as local:
        append(store, range(3))
        append(local, range(3))
    name = url.removeprefix("s3://bucket/")
    sent = server.objects(name)
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    written = {f"{name}/{file.relative_to(folder)}": file.read_bytes() for file in files}
    group, expected = (
        json.loads(each.pop(f"{name}/worker_0/zarr.json")) for each in (sent, written)
    )
    documents = group["consolidated_metadata"]["metadata"]
    for key in [key for key in sent if "/c." in key]:  # beyond the rows nobody reads
        shape, stored = documents[key.partition("/worker_0/")[2].rpartition("/")[0]], sent[key]
        rows, size = shape["shape"][0], layout.chunk_shape(shape)[0]
        used = len(stored) if size == 1 else rows * (len(stored) // size)
        assert stored[:used] == written[key][:used]
        assert len(sent.pop(key)) == len(written.pop(key))
    assert sent == written
    assert group["attributes"].pop("spool")
    assert group["attributes"].pop("run") == "one"
    assert group == expected


def test_nothing_is_listed_while_rows_are_sent(url, monkeypatch):
    with created(url) as store:
        for name in ("list", "list_with_delimiter"):
            monkeypatch.setattr(obstore, name, lambda *_, **__: pytest.fail("listed"))
        append(store, range(3))
    monkeypatch.undo()


def test_rows_that_have_arrived_are_readable_before_closing(url):
    with created(url) as store:
        append(store, range(2))
        wait_until(lambda: not store.unsent)
        check(url, range(2))
        assert not list(store.folder.rglob("grad_float32/c.*")), "sent rows still take disk"


@pytest.mark.parametrize("rows", [6, 8])
def test_a_run_goes_on_where_no_folder_of_it_is_left(url, monkeypatch, rows):
    monkeypatch.setattr(layout, "COLUMN_CHUNK_ROWS", 4)
    with created(url) as store:
        append(store, range(rows))
    with GradientStore.create(url, TABLE, if_exists="resume") as store:
        store.set_track(IDS)
        append(store, range(rows, rows + 3))
    check(url, range(rows + 3))


def test_a_folder_whose_rows_share_chunks_can_be_uploaded_and_goes_on_there(
    url, tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "CHUNK_ROWS", 4)
    folder = tmp_path / "run.zarr"
    with created(folder) as store:
        append(store, range(6))
    place = InObjects(url)
    for file in [each for each in folder.rglob("*") if each.is_file()]:
        (place / str(file.relative_to(folder))).put(file.read_bytes())
    with GradientStore.create(url, TABLE, if_exists="resume") as store:
        store.set_track(IDS)
        for step in range(6, 15):
            append(store, [step])
            wait_until(lambda: not store.unsent)
        left = {file.name for file in store.folder.rglob("grad_float32/c.*")}
        assert left == {"c.3.0"}, "full chunks that were sent still take disk"
    check(url, range(15))
    assert GradientStore.open(url).stream().arrays["grad_float32"].chunks == (4, 5000)


def test_a_lost_connection_delays_rows_and_never_loses_one(url, server):
    with created(url) as store:
        append(store, range(3))
        server.stop()
        try:
            append(store, range(3, 6))
            wait_until(lambda: store.fault)
            assert "cannot reach s3://bucket" in store.fault
            assert store.unsent >= 6
        finally:
            server.start()
        append(store, range(6, 8))
    assert store.fault == ""
    check(url, range(8))


def test_rows_that_never_arrived_are_sent_by_the_next_writer(url, server, monkeypatch, tmp_path):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    store = created(url)
    append(store, range(3))
    server.stop()
    try:
        append(store, range(3, 6))
        store.close()
    finally:
        server.start()
    assert store.fault
    assert store.unsent >= 6
    (left,) = (tmp_path / "spool").iterdir()
    assert spool.address(left) == url
    with GradientStore.create(url, TABLE, if_exists="resume") as store:
        store.set_track(IDS)
        append(store, range(6, 7))
    check(url, range(7))
    assert not left.exists()


def test_another_run_in_its_place_takes_nothing_of_the_old_ones_rows(url, server, monkeypatch):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    store = created(url)
    server.stop()
    try:
        append(store, range(3))
        store.close()
    finally:
        server.start()
    with GradientStore.create(
        url, TABLE, provenance={"made": "later"}, if_exists="overwrite"
    ) as store:
        store.set_track(IDS)
        append(store, range(7, 9))
    check(url, range(7, 9))


def test_a_second_writer_on_this_machine_is_refused(url):
    with created(url) as store:
        append(store, range(1))
        with pytest.raises(BlockingIOError, match="is writing there"):
            GradientStore.create(url, TABLE, if_exists="resume").claim()
        append(store, range(1, 2))
    check(url, range(2))


def test_what_another_process_writes_is_not_replaced(url):
    with created(url) as store:
        append(store, range(2))
        with pytest.raises(BlockingIOError, match="is writing there"):
            created(url, if_exists="overwrite")
        append(store, range(2, 4))
    store.close()  # once more
    check(url, range(4))
    with created(url, if_exists="overwrite") as store:
        append(store, range(1))
    check(url, range(1))


def test_a_track_of_one_element_goes_on_from_what_is_left_here(url, server, monkeypatch):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    ids = {"float32": np.array([7])}
    store = GradientStore.create(url, TABLE)
    store.set_track(ids)
    tracked = Row(0, {"float32": torch.ones(1)}, np.array([True, True]))
    store.append_rows([tracked], kind="track")
    wait_until(lambda: not store.unsent)
    server.stop()
    try:
        store.append_rows([row(0)])
        store.close()
    finally:
        server.start()
    assert store.unsent == 1
    with GradientStore.create(url, TABLE, if_exists="resume") as store:
        store.set_track(ids)
    run = GradientStore.open(url)
    assert run.stream(0, "track").read(0).tolist() == [1]
    assert torch.equal(run.stream().read(0, "w").flatten(), row(0).flat["float32"])


def test_a_writer_on_another_machine_is_noticed_and_not_written_over(url, monkeypatch, tmp_path):
    first = created(url)
    append(first, range(2))
    wait_until(lambda: not first.unsent)
    monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / "elsewhere"))
    with GradientStore.create(url, TABLE, if_exists="resume") as second:
        second.set_track(IDS)
        append(second, range(2, 4))
    append(first, range(7, 9))
    first.close()
    assert "another process has written there since" in first.fault
    assert first.unsent == 4
    assert GradientStore.open(url).stream().steps.tolist() == [0, 1, 2, 3]


def test_a_writer_that_is_late_puts_nothing(url, server, monkeypatch, tmp_path):
    """Another one has taken over, and has not written yet: not a byte there may change."""
    name = url.removeprefix("s3://bucket/")
    late = created(url)
    append(late, range(2))
    wait_until(lambda: not late.unsent)
    monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / "elsewhere"))
    with GradientStore.create(url, TABLE, if_exists="resume") as other:
        other.claim()
        before = server.objects(name)
        append(late, range(7, 9))
        late.close()
        assert "another process has written there since" in late.fault
        assert server.objects(name) == before


def test_rows_of_two_histories_are_not_mixed(url, server, monkeypatch, tmp_path):
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.2)
    first = created(url)
    append(first, range(2))
    server.stop()
    try:
        append(first, range(2, 4))
        first.close()
    finally:
        server.start()
    here = os.environ["GRADSTATS_SPOOL"]
    monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / "elsewhere"))
    with GradientStore.create(url, TABLE, if_exists="resume") as second:
        append_full(second, range(4, 6))
    monkeypatch.setenv("GRADSTATS_SPOOL", here)
    with pytest.raises(ValueError, match="were never sent, and another writer"):
        GradientStore.create(url, TABLE, if_exists="resume").claim()


def append_full(store, steps):
    for step in steps:
        store.append_rows([row(step)])


KILLED = """
import sys, numpy as np
from tests.store.test_objects import *
store = created(sys.argv[1], if_exists=sys.argv[2])
start = max(0, int(sys.argv[3]))
print("ready", flush=True)
for step in range(start, 100_000):
    append(store, [step])
    print(step, flush=True)
"""


def test_every_committed_row_arrives_after_kills(url):
    told, mode = -1, "error"
    for instant in (0.0, 0.05, 0.3):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, url, mode, str(told + 1)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(instant)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split()
        told, mode = max(told, int(lines[-1]) if lines else -1), "resume"
        with created(url, if_exists="resume") as store:
            tracked, whole = (len_of(store, kind) for kind in ("track", "full"))
            assert whole - 1 >= told
            if tracked > whole:
                append_full(store, [whole])
        told = tracked - 1
    check(url, range(told + 1))


def len_of(store, kind):
    prefix = "track/" if kind == "track" else ""
    return store._claims.writers[0].documents[f"{prefix}step"]["shape"][0]


def test_what_is_wrong_with_a_url_is_said(url, monkeypatch):
    with pytest.raises(StoreFormatError, match="nothing is there"):
        GradientStore.open(url)
    with pytest.raises(ValueError, match="cannot open nosuch://x"):
        GradientStore.open("nosuch://x")
    with created(url) as store:
        append(store, range(1))
    with pytest.raises(FileExistsError, match="it exists; if_exists='resume'"):
        created(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(OSError, match="cannot reach s3://bucket"):
        GradientStore.open(url)


def test_a_chunk_that_is_missing_is_named(url):
    with created(url) as store:
        append(store, range(2))
    obstore.delete(store.path.content, "worker_0/grad_float32/c.1.0")
    stream = GradientStore.open(url).stream()
    assert torch.equal(stream.read(0, "w").flatten(), row(0).flat["float32"])
    with pytest.raises(StoreFormatError, match=r"grad_float32: chunk c\.1\.0 is missing"):
        stream.read(1)
