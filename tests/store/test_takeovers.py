"""Writers of one place in an object store: late ones, those that took over, runs replaced."""

import threading
from itertools import product

import numpy as np
import pytest
import torch
import zarr

from gradstats.store import GradientStore, Row, as_place, layout, parameter_table, root
from gradstats.store.layout import COORDINATES
from gradstats.store.objects import InObjects
from tests.store.test_objects import IDS, TABLE, created, row
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("obstore", reason="needs obstore (the cloud extra)")


class Gate:
    """Holds the sender of one store up at the first request of a kind, until it is opened."""

    def __init__(self, monkeypatch, store, stops):
        self.reached, self.opened = threading.Event(), threading.Event()
        self._store, self._stops = store, stops
        put_over, put_over_async = InObjects.put_over, InObjects.put_over_async

        def put(place, data, tag):
            self._wait(place)
            return put_over(place, data, tag)

        async def put_async(place, data, tag):
            self._wait(place)
            return await put_over_async(place, data, tag)

        monkeypatch.setattr(InObjects, "put_over", put)
        monkeypatch.setattr(InObjects, "put_over_async", put_async)

    def _wait(self, place):
        ours = {spool._thread.ident for spool in self._store._claims.spools.values()}
        if threading.get_ident() in ours and self._stops(place.key) and not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(PATIENCE)


STALLS = {
    "before any chunk": lambda key: "/c." in key,
    "before a column": lambda key: "/c." in key and "grad_" not in key,
    "before a flag": lambda key: "/skipped/c." in key,
    "before the commit": lambda key: key.endswith("worker_0/zarr.json"),
}


def append(store, steps, **coordinates):
    """Rows in one commit a kind, the loss of each an eighth of its step."""
    for kind in ("track", "full"):
        rows = [row(step, kind) for step in steps]
        told = [{**each.coordinates, **coordinates} for each in rows]
        pairs = zip(rows, told, strict=True)
        made = [Row(r.step, r.flat, r.present, facts) for r, facts in pairs]
        store.append_rows(made, kind=kind)


def check(url, steps, tmp_path):
    """All rows are those of a folder with the same rows, for gradstats and for plain Zarr."""
    with created(tmp_path / "expected.zarr", if_exists="overwrite") as expected:
        append(expected, steps)
    for kind in ("full", "track"):
        here, there = (each.stream(0, kind) for each in (expected, GradientStore.open(url)))
        assert there.steps.tolist() == list(steps)
        np.testing.assert_array_equal(there.present, here.present)
        for name in COORDINATES:
            np.testing.assert_array_equal(there.coordinates[name], here.coordinates[name], name)
        for index in range(len(here)):
            for dtype in here.dtypes:
                pair = here.read_flat(index, dtype), there.read_flat(index, dtype)
                assert torch.equal(*pair)
    group = zarr.open_group(InObjects(url).zarr_store(), path="worker_0", mode="r")
    assert group["step"][:].tolist() == list(steps)
    assert not group["skipped"][:].any()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Go to another machine."""

    def go(name="elsewhere"):
        monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / name))

    return go


def resumed(url):
    store = GradientStore.create(url, TABLE, if_exists="resume")
    store.set_track(IDS)
    return store


@pytest.mark.parametrize(
    ("rows", "stall"),
    [*product([3], STALLS), (0, "before any chunk"), (0, "before the commit")],
)
def test_a_late_writer_changes_no_row_of_the_one_that_took_over(
    url, rows, stall, elsewhere, monkeypatch, tmp_path
):
    monkeypatch.setattr(layout, "COLUMN_CHUNK_ROWS", 4)
    first = created(url)
    append(first, range(rows))
    wait_until(lambda: not first.unsent and first._claims.spools[0]._begun)
    gate = Gate(monkeypatch, first, STALLS[stall])
    append(first, range(70, 72), skipped=True, segment=3, grad_norm=1.5, world_size=2)
    assert gate.reached.wait(PATIENCE)
    elsewhere()
    with resumed(url) as second:
        append(second, range(rows, rows + 2))
    assert second.fault == ""
    check(url, range(rows + 2), tmp_path)
    gate.opened.set()
    first.close()
    assert "another process has written there since" in first.fault
    assert first.unsent == 4
    check(url, range(rows + 2), tmp_path / "again")
    elsewhere()
    with resumed(url) as third:
        append(third, range(rows + 2, rows + 4))
    check(url, range(rows + 4), tmp_path / "and_again")


@pytest.mark.parametrize("stall", STALLS)
def test_chunks_of_a_writer_that_died_do_not_stop_the_next(
    url, stall, elsewhere, monkeypatch, tmp_path
):
    first = created(url)
    append(first, range(1))
    wait_until(lambda: not first.unsent)
    gate = Gate(monkeypatch, first, STALLS[stall])
    append(first, range(70, 73), skipped=True)
    assert gate.reached.wait(PATIENCE)
    for name, start in (("second", 1), ("third", 4)):  # which do not go on where it was
        elsewhere(name)
        with resumed(url) as store:
            append(store, range(start, start + 1))
            append(store, range(start + 1, start + 3))
        assert store.fault == ""
        check(url, range(start + 3), tmp_path / name)
    gate.opened.set()
    first.close()
    assert first.fault


def test_of_two_that_begin_at_once_one_writes(url, elsewhere, monkeypatch, tmp_path):
    begun = GradientStore.create(url, TABLE, provenance={"made": "here"})
    first = GradientStore.open(url, "a")
    gate = Gate(monkeypatch, first, lambda key: key.endswith("worker_0/zarr.json"))
    first.set_track(IDS)
    append(first, range(70, 72), skipped=True)
    assert gate.reached.wait(PATIENCE)
    elsewhere()
    with resumed(url) as second:
        append(second, range(2))
    gate.opened.set()
    first.close()
    assert "another process has written there since" in first.fault
    assert begun.run == first.run == second.run
    check(url, range(2), tmp_path)


def test_a_late_writer_of_a_replaced_run_adds_nothing_to_the_new_one(
    url, elsewhere, monkeypatch, tmp_path
):
    first = GradientStore.create(url, TABLE, provenance={"made": "here"})
    gate = Gate(monkeypatch, first, lambda key: key.endswith("worker_0/zarr.json"))
    first.set_track(IDS)
    append(first, range(70, 72), skipped=True)
    assert gate.reached.wait(PATIENCE)
    elsewhere()
    second = GradientStore.create(url, TABLE, provenance={"made": "here"}, if_exists="overwrite")
    gate.opened.set()
    wait_until(lambda: InObjects(url + "/worker_0/zarr.json").is_file())
    first.close()
    with second:
        second.set_track(IDS)
        append(second, range(2))
    assert second.fault == ""
    check(url, range(2), tmp_path)


def test_a_worker_of_a_replaced_run_is_none_of_the_new_one(url, elsewhere, monkeypatch, tmp_path):
    first = GradientStore.create(url, TABLE)
    gate = Gate(monkeypatch, first, lambda key: key.endswith("worker_1/zarr.json"))
    first.append_rows([row(70)], worker=1)
    assert gate.reached.wait(PATIENCE)
    elsewhere()
    with created(url, if_exists="overwrite") as second:
        append(second, range(2))
    gate.opened.set()
    first.close()
    assert InObjects(url + "/worker_1/zarr.json").is_file()
    assert second.workers == GradientStore.open(url).workers == (0,)
    check(url, range(2), tmp_path)


def test_a_late_copy_of_metadata_is_not_put_over_a_newer_one(url, elsewhere, monkeypatch):
    first = created(url)
    append(first, range(1))
    wait_until(lambda: not first.unsent)
    gate = Gate(monkeypatch, first, lambda key: key.endswith("/step/zarr.json"))
    closing = threading.Thread(target=first.close)
    closing.start()
    assert gate.reached.wait(PATIENCE)
    elsewhere()
    with resumed(url) as second:
        append(second, range(1, 3))
    gate.opened.set()
    closing.join()
    group = zarr.open_group(
        InObjects(url).zarr_store(), path="worker_0", mode="r", use_consolidated=False
    )
    assert group["step"].shape == (3,)


def test_rows_of_a_replaced_run_are_not_sent_into_one_of_equal_provenance(
    url, server, elsewhere, monkeypatch, tmp_path
):
    monkeypatch.setattr("gradstats.store.spool.PATIENCE_SECONDS", 0.2)
    elsewhere("here")
    first = GradientStore.create(url, TABLE, provenance={"made": "here"})
    first.claim()
    wait_until(lambda: first._claims.spools[0]._begun)
    server.stop()
    try:
        first.set_track(IDS)
        append(first, range(70, 72))
        first.close()
    finally:
        server.start()
    elsewhere()
    made = GradientStore.create(url, TABLE, provenance={"made": "here"}, if_exists="overwrite")
    elsewhere("here")
    with resumed(url) as second:
        append(second, range(2))
    assert made.run == second.run != first.run
    check(url, range(2), tmp_path)


@pytest.mark.parametrize("before", [0, 1])
def test_of_two_machines_that_bring_a_table_the_first_ones_stays(
    url, elsewhere, monkeypatch, before
):
    one, other = (parameter_table([(name, (3,), "float32")]) for name in "ab")
    GradientStore.create(url).close()
    late = GradientStore.open(url, "a")
    steps = [0]

    def put_root(*args):
        monkeypatch.setattr(root, "put_root", put)
        elsewhere()
        with GradientStore.open(url, "a") as quick:
            if before:
                GradientStore.create(url, if_exists="overwrite")
            else:
                quick._adopt(other)
        elsewhere("spool")
        steps.append(1)
        return put(*args)

    put = root.put_root
    monkeypatch.setattr(root, "put_root", put_root)
    if before:
        with pytest.raises(OSError, match="replaced or deleted"):
            late._adopt(one)
    else:
        late._adopt(one)
        assert late.parameters == other
    assert steps == [0, 1]
    assert GradientStore.open(url).parameters == (() if before else other)


@pytest.mark.parametrize("if_exists", ["error", "resume"])
def test_of_two_machines_that_create_a_store_one_does(url, elsewhere, monkeypatch, if_exists):
    made = []

    def remove_spool(place):
        monkeypatch.setattr(root, "remove_spool", remove)
        elsewhere()
        made.append(GradientStore.create(url, TABLE))
        elsewhere("spool")
        remove(place)

    remove = root.remove_spool
    monkeypatch.setattr(root, "remove_spool", remove_spool)
    if if_exists == "error":
        with pytest.raises(FileExistsError, match="it exists"):
            GradientStore.create(url, TABLE)
    else:
        late = GradientStore.create(url, TABLE, if_exists="resume")
        assert (late.run, late.fresh) == (made[0].run, False)
    assert GradientStore.open(url).run == made[0].run


def test_what_took_the_place_of_a_run_is_not_removed_with_it(url, elsewhere, tmp_path):
    for path in (url, tmp_path / "run.zarr"):
        late = GradientStore.create(path, TABLE)
        elsewhere("there")
        second = GradientStore.create(path, TABLE, if_exists="overwrite")
        elsewhere("here")
        late.remove()
        assert GradientStore.open(path).run == second.run
        second.remove()
        assert not as_place(path).exists()


def test_a_run_that_was_replaced_is_not_written_any_more(url, elsewhere, tmp_path):
    first = GradientStore.create(url, TABLE)
    elsewhere()
    with created(url, if_exists="overwrite") as second:
        append(second, range(2))
    with pytest.raises(OSError, match="replaced or deleted"):
        first.claim()
    check(url, range(2), tmp_path)
