"""Processes of one machine that make, use and leave the folder of an object store at once."""

import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from gradstats.store import GradientStore, files, spool_folder
from gradstats.store.objects import Conflict, InObjects
from gradstats.store.root import root_bytes
from gradstats.store.spool import Spool
from gradstats.store.spool_folder import leave_spool, make_spool
from gradstats.store.writing import WorkerWriter
from tests.processes import Nursery
from tests.store.test_objects import TABLE, append, check, created, row
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

pytest.importorskip("obstore", reason="needs obstore (the cloud extra)")


@pytest.fixture
def place(url):
    """A store of the run "new" of which this machine has rows of the run "old"."""
    GradientStore.create(url, TABLE, run="new").close()
    place = InObjects(url)
    leave_old_rows(place)
    return place


def leave_old_rows(place):
    folder = spool_folder.spool_folder(place)
    (folder / "worker_0/step").mkdir(parents=True)
    (folder / "worker_0/zarr.json").write_text("old")
    files.replace_file(folder / "zarr.json", root_bytes(TABLE, {}, "old"))


NEW = root_bytes(TABLE, {}, "new")
A_WHILE = 0.5  # seconds, in which one without a lock would be done


def held_up(monkeypatch, owner, name):
    """Hold the next call up; returns what says that it began, and what lets it go on."""
    began, go_on = threading.Event(), threading.Event()
    function = getattr(owner, name)

    def slow(*args, **kwargs):
        if not began.is_set():
            began.set()
            assert go_on.wait(PATIENCE)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    return began, go_on


@pytest.mark.parametrize("step", ["rmtree", "rename"])
def test_what_one_process_made_another_does_not_remove(place, monkeypatch, step):
    owner = shutil if step == "rmtree" else spool_folder.Path
    began, go_on = held_up(monkeypatch, owner, step)
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(make_spool, place, NEW)
        assert began.wait(PATIENCE)
        fast = threads.submit(used, place)
        fast_done = threading.Event()
        fast.add_done_callback(lambda _: fast_done.set())
        fast_done.wait(A_WHILE)
        go_on.set()
        folder, mine = slow.result(PATIENCE), fast.result(PATIENCE)
    assert mine.read_text() == "new"
    assert (folder / "zarr.json").read_bytes() == NEW


def used(place):
    """Make the folder and put something of the new run there."""
    mine = make_spool(place, NEW) / "worker_7.txt"
    mine.write_text("new")
    return mine


def test_a_folder_that_is_made_is_not_left_in_between(place, monkeypatch):
    folder = make_spool(place, NEW)
    began, go_on = held_up(monkeypatch, shutil, "rmtree")
    with ThreadPoolExecutor(2) as threads:
        leaving = threads.submit(leave_spool, place)
        assert began.wait(PATIENCE)
        making = threads.submit(used, place)
        go_on.set()
        leaving.result(PATIENCE)
        assert making.result(PATIENCE).read_text() == "new"
    assert (folder / "zarr.json").read_bytes() == NEW
    leave_spool(place)
    assert folder.exists()


def test_a_store_writes_after_another_has_left_the_folder(url):
    with created(url) as store:
        append(store, range(1))
    one, other = (GradientStore.open(url, "a") for _ in range(2))
    other.claim(1)
    other.close()
    assert not one.folder.exists()
    one.append_rows([row(1, "track")], kind="track")
    one.append_rows([row(1)])
    one.close()
    check(url, range(2))


def test_a_table_is_adopted_after_another_has_left_the_folder(url):
    GradientStore.create(url).close()
    one = GradientStore.open(url, "a")
    shutil.rmtree(one.folder)
    with one:
        one.append(0, {"w": row(0).flat["float32"]})
    assert GradientStore.open(url).stream().steps.tolist() == [0]


def test_a_late_process_of_the_replaced_run_removes_nothing_of_the_new_one(place):
    mine = used(place)
    with pytest.raises(Conflict, match="replaced or deleted"):
        make_spool(place, root_bytes(TABLE, {}, "old"))
    assert mine.read_text() == "new"


def test_a_run_that_is_replaced_before_it_sends_begins_nothing(url, monkeypatch, tmp_path):
    """Between a writer's start and its first commit another run has taken the place."""
    GradientStore.create(url, TABLE, run="old").close()
    late = Spool(InObjects(url), root_bytes(TABLE, {}, "old"), 0)
    WorkerWriter(late.folder.parent, 0, TABLE).close()
    monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / "elsewhere"))
    GradientStore.create(url, TABLE, run="new", if_exists="overwrite").close()
    with pytest.raises(Conflict, match="replaced"):
        late._send()
    late.close()
    with pytest.raises(FileNotFoundError):
        (InObjects(url) / "worker_0/zarr.json").read_bytes()


def test_a_writer_of_the_replaced_run_that_lives_is_not_removed(place):
    folder = spool_folder.spool_folder(place)
    lock = files.take_lock(folder / "worker_0.lock", "it")
    with pytest.raises(BlockingIOError, match="is writing there"):
        make_spool(place, NEW)
    assert (folder / "worker_0/zarr.json").read_text() == "old"
    lock.close()
    make_spool(place, NEW)
    assert not (folder / "worker_0").exists()


def test_a_folder_without_a_root_is_of_no_run(place):
    folder = spool_folder.spool_folder(place)
    (folder / "zarr.json").unlink()
    make_spool(place, NEW)
    assert not (folder / "worker_0").exists()


def make_and_leave(url, rank):
    """What a rank does of the folder, many times; returns what went wrong."""
    place, wrong = InObjects(url), []
    for turn in range(20):
        try:
            with spool_folder.spool_lock(place):
                folder = spool_folder.settled(place, NEW)
                mine = folder / f"worker_{rank}.lock"
                mine.write_text(str(turn))
            if mine.read_text() != str(turn) or (folder / "worker_0").exists():
                wrong.append(f"{rank} {turn}: another's folder")
            mine.unlink()
            leave_spool(place)
        except OSError as error:
            wrong.append(f"{rank} {turn}: {error!r}")
    return wrong


def take(environment):
    """The object store's variables; that from which a process is forked has not got them."""
    os.environ.update(environment)


def test_ranks_make_and_leave_the_folder_at_once(place):
    with ProcessPoolExecutor(3, Nursery().context, take, (dict(os.environ),)) as ranks:
        done = [ranks.submit(make_and_leave, str(place), rank) for rank in range(3)]
        assert [each.result(PATIENCE) for each in done] == [[], [], []]
    assert not spool_folder.spool_folder(place).exists()
    assert list(spool_folder.spool_folder(place).parent.iterdir()) == []


@pytest.mark.parametrize("how", ["folder", "url"])
def test_one_of_many_creates_a_store(url, tmp_path, how, monkeypatch):
    path = url if how == "url" else tmp_path / "run.zarr"
    gate = threading.Barrier(4, timeout=PATIENCE)

    def create(_):
        gate.wait()
        try:
            return GradientStore.create(path, TABLE).run
        except FileExistsError:
            return None

    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(create, range(4)))
    assert [run for run in runs if run] == [GradientStore.open(path).run]


def test_a_lock_is_held_by_one_however_often_its_file_goes(tmp_path):
    inside, most = [], []

    def enter(_):
        for _ in range(50):
            with files.held(tmp_path / "a.lock"):
                inside.append(0)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(enter, range(8)))
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []
