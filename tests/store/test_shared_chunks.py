"""Chunks that several small rows share: exact, safe to extend, and read as any other."""

import os
import shutil
import sys
import threading
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from gradstats.store import GradientStore, Row, StoreFormatError, gradient_store, layout
from gradstats.store.parameters import parameter_table
from gradstats.store.raw import read_raw

DTYPES = ("float64", "float32", "float16", "bfloat16")


@pytest.fixture
def tiny(monkeypatch):
    """Chunks of at most 4 rows, or of about 64 bytes."""
    monkeypatch.setattr(layout, "CHUNK_BYTES", 64)
    monkeypatch.setattr(layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(layout, "COLUMN_CHUNK_ROWS", 6)


def bits(tensor):
    return tensor.contiguous().view(getattr(torch, f"int{8 * tensor.element_size()}"))


def row(step, widths, seed=0, **coordinates):
    """Random bits, which are NaNs, infinities and subnormals too."""
    rng = np.random.default_rng([seed, step])
    flat = {
        dtype: torch.from_numpy(rng.integers(0, 256, n * itemsize(dtype), np.uint8)).view(
            getattr(torch, dtype)
        )
        for dtype, n in widths.items()
    }
    return Row(step, flat, np.ones(1, bool), coordinates)


def itemsize(dtype):
    return layout.ITEMSIZE[dtype]


def created(path, width, dtype="float32"):
    return GradientStore.create(path, parameter_table([("w", (width,), dtype)]))


def same(stream, index, expected):
    return all(
        torch.equal(bits(stream.read_flat(index, dtype)), bits(flat))
        for dtype, flat in expected.flat.items()
    )


def chunks(path, name="grad_float32"):
    return sorted(file.name for file in (path / "worker_0" / name).glob("c.*"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 5, 8, 16, 17, 33, 70])
def test_rows_of_every_size_come_back_bit_for_bit(tmp_path, tiny, dtype, width):
    """From four rows in a chunk to many chunks in a row, appended one, two and five at a time."""
    ids = {dtype: np.arange(0, width, 2)}
    rows = [row(step, {dtype: width}) for step in range(11)]
    tracked = [row(step, {dtype: len(ids[dtype])}, seed=1) for step in range(11)]
    with created(tmp_path / "run", width, dtype) as store:
        store.set_track(ids)
        for first, last in ((0, 1), (1, 3), (3, 8), (8, 9), (9, 11)):
            store.append_rows(rows[first:last])
            store.append_rows(tracked[first:last], kind="track")
            stream = store.stream()
            assert all(same(stream, index, rows[index]) for index in range(last))
    store = GradientStore.open(tmp_path / "run")
    assert all(same(store.stream(), index, each) for index, each in enumerate(rows))
    assert all(same(store.stream(0, "track"), i, each) for i, each in enumerate(tracked))
    plain = zarr.open(str(tmp_path / "run"), mode="r")["worker_0"][f"grad_{dtype}"]
    expected = np.stack([bits(each.flat[dtype]).numpy() for each in rows])
    assert (plain[:].view(expected.dtype) == expected).all()


def test_a_chunk_holds_as_many_rows_as_take_eight_megabytes_but_not_more_than_32():
    shared = {10: 32, 65_536: 31, 269_722: 8, 1_000_000: 2, 2_000_000: 1, 2_000_001: 1, 0: 32}
    assert {width: layout.chunk_rows(width, 4) for width in shared} == shared
    for width in range(1, 2_100_000, 9_973):
        rows, elements = layout.chunk_rows(width, 4), layout.chunk_elements(width, 4)
        assert rows * elements * 4 <= 16_000_000
        assert rows == 1 or elements == width


def test_weights_and_dtypes_of_other_widths_have_chunks_of_their_own(tmp_path, tiny):
    widths = {"float32": 3, "bfloat16": 20, "float64": 9}
    table = parameter_table([(dtype, (n,), dtype) for dtype, n in widths.items()])
    rows = [row(step, widths) for step in range(6)]
    rows = [Row(r.step, r.flat, np.ones(3, bool), {}, row(9, widths).flat) for r in rows]
    with GradientStore.create(tmp_path / "run", table) as store:
        for each in rows:
            store.append_rows([each])
    stream = GradientStore.open(tmp_path / "run").stream()
    for index, each in enumerate(rows):
        assert same(stream, index, each)
        for dtype, flat in each.weights.items():
            stored = stream.read_flat(index, dtype, quantity="weight")
            assert torch.equal(bits(stored), bits(flat))
    assert [stream.arrays[f"weight_{dtype}"].chunks for dtype in widths] == [
        (4, 3),
        (2, 20),
        (1, 5),
    ]


def test_a_part_of_a_row_is_read_without_the_rows_beside_it(tmp_path, tiny):
    rows = [row(step, {"float32": 10}) for step in range(3)]
    with created(tmp_path / "run", 10) as store:
        store.append_rows(rows)
        stream = store.stream()
    folder = tmp_path / "run/worker_0/grad_float32"
    values = read_raw(folder, stream.arrays["grad_float32"], 1, (3, 7))
    assert (values.view(np.int32) == bits(rows[1].flat["float32"])[3:7].numpy()).all()
    assert torch.equal(
        bits(stream.read_flat(2, "float32", 9, 10)), bits(rows[2].flat["float32"])[9:]
    )


def test_rows_and_elements_beyond_the_commit_are_not_read(tmp_path, tiny):
    """A chunk has room for rows to come, which are no rows yet; elements are cut as by a slice."""
    rows = [row(step, {"float32": 5}) for step in range(2)]
    with created(tmp_path / "run", 5) as store:
        store.append_rows(rows)
        stream = store.stream()
    for outside in (2, 3, 4, -3):
        with pytest.raises(IndexError, match=f"from -2 to 1, got {outside}"):
            stream.read_flat(outside, "float32")
    assert all(same(stream, index, rows[index]) for index in (0, 1, -1, -2))
    expected = bits(rows[1].flat["float32"])
    for part in (slice(0, -1), slice(1, 99), slice(-2, None), slice(3, 1), slice(9, 12)):
        values = stream.read_flat(1, "float32", part.start, part.stop)
        assert torch.equal(bits(values), expected[part])


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files of this process")
def test_many_workers_and_many_arrays_hold_few_files_open(tmp_path):
    """A process may often have no more than 1,024 files open."""

    def held():
        return len(os.listdir("/proc/self/fd"))

    before = held()
    with created(tmp_path / "run", 5) as store:
        for step, worker in product(range(2), range(40)):
            store.append_rows([row(step, {"float32": 5}, seed=worker)], worker)
        assert held() - before < 40 + 250
    store = GradientStore.open(tmp_path / "run")
    assert all(
        same(store.stream(worker), step, row(step, {"float32": 5}, seed=worker))
        for step, worker in product(range(2), range(40))
    )
    names = [str(place) for place in range(40)]
    table = parameter_table([(name, (9, 1), "float32") for name in names], sparse=names)
    kept = {f"indices_{name}": np.array([3]) for name in names}
    kept |= {f"values_{name}": np.array([float(name)], "f4") for name in names}
    flat = {"float32": torch.zeros(0)}
    with GradientStore.create(tmp_path / "sparse", table) as store:
        for step in range(3):
            store.append_rows([Row(step, flat, np.ones(40, bool), {}, None, kept)])
        assert held() - before < 120
    stream = GradientStore.open(tmp_path / "sparse").stream()
    assert all(
        stream.read(step, name).to_dense()[3] == float(name)
        for step, name in product(range(3), names)
    )


def test_zarr_reads_what_is_not_raw(tmp_path):
    """Another writer may compress the chunks, or cut a row that is shared."""
    values = np.arange(60, dtype="f4").reshape(5, 12)
    packed = zarr.create_array(
        tmp_path / "packed", data=values, chunks=(2, 12), compressors="auto"
    )
    assert read_raw(tmp_path / "packed", packed, 3, (0, 12)) is None
    cut = zarr.create_array(tmp_path / "cut", data=values, chunks=(2, 5), compressors=None)
    assert (read_raw(tmp_path / "cut", cut, 3, (1, 12)) == values[3, 1:]).all()
    codec = zarr.codecs.BytesCodec(endian="big")
    big = zarr.create_array(
        tmp_path / "big", data=values, chunks=(2, 5), compressors=None, serializer=codec
    )
    assert read_raw(tmp_path / "big", big, 3, (1, 12)) is None


def test_a_zip_file_of_shared_chunks_reads_alike(tmp_path, tiny):
    rows = [row(step, {"float32": 5}) for step in range(9)]
    with created(tmp_path / "run", 5) as store:
        store.append_rows(rows)
    with zipfile.ZipFile(tmp_path / "run.zarr.zip", "w") as packed:
        for file in (tmp_path / "run").rglob("*"):
            packed.write(file, file.relative_to(tmp_path / "run"))
    stream = GradientStore.open(tmp_path / "run.zarr.zip").stream()
    assert all(same(stream, index, each) for index, each in enumerate(rows))


def test_a_store_of_before_keeps_one_row_per_chunk_until_it_is_resumed(tmp_path):
    path = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "v1", path)
    widths = {"float32": 6, "bfloat16": 2, "float16": 1}

    def more(step):
        each = row(step, widths)
        return Row(step, each.flat, np.ones(3, bool), {}, each.flat)

    with GradientStore.open(path, "a") as store:
        store.append_rows([more(30)])
        store.append_rows([more(30)], worker=1)
        assert store.stream(1).arrays["grad_float32"].chunks == (1, 6)
    assert chunks(path) == ["c.0.0", "c.1.0", "c.2.0", "c.3.0"]
    table = GradientStore.open(path).parameters
    with GradientStore.create(path, table, if_exists="resume") as store:
        store.append_rows([more(40)])
        store.append_rows([more(step) for step in range(3)], worker=2)
        assert store.stream(2).arrays["grad_float32"].chunks == (32, 6)
    stream = GradientStore.open(path).stream()
    assert stream.steps.tolist() == [0, 10, 20, 30, 40]
    assert all(same(stream, index, more(step)) for index, step in ((3, 30), (4, 40)))
    assert all(same(GradientStore.open(path).stream(2), step, more(step)) for step in range(3))


def test_a_version_that_does_not_know_shared_chunks_reads_and_does_not_append(
    tmp_path, tiny, monkeypatch
):
    rows = [row(step, {"float32": 5}) for step in range(5)]
    with created(tmp_path / "run", 5) as store:
        store.append_rows(rows)
    before = tuple(name for name in layout.FEATURES if name != layout.SHARED_CHUNKS)
    monkeypatch.setattr(gradient_store, "FEATURES", before)
    assert same(GradientStore.open(tmp_path / "run").stream(), 4, rows[4])
    with pytest.raises(StoreFormatError, match="does not write: shared_chunks; upgrade gradstats"):
        GradientStore.open(tmp_path / "run", "a")


@pytest.mark.parametrize("how", ["missing", "cut", "long"])
def test_damage_names_the_row_and_takes_no_other_chunk(tmp_path, tiny, how):
    with created(tmp_path / "run", 3) as store:
        store.append_rows([row(step, {"float32": 3}) for step in range(10, 20)])
    file = tmp_path / "run/worker_0/grad_float32/c.1.0"
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(content[:20] if how == "cut" else content + b"1")
    stream = GradientStore.open(tmp_path / "run").stream()
    with pytest.raises(StoreFormatError, match=r"it holds 'w' in row 5 \(step 15\)"):
        stream.read(5)
    assert same(stream, 3, row(13, {"float32": 3}))
    assert same(stream, 8, row(18, {"float32": 3}))


@pytest.mark.parametrize(("chunk", "stops"), [("c.0.0", False), ("c.1.0", True)])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_no_row_is_added_to_a_damaged_chunk(tmp_path, tiny, chunk, stops, how):
    """It would make the chunk look whole, with zeros where rows were lost."""
    with created(tmp_path / "run", 3) as store:
        store.append_rows([row(step, {"float32": 3}) for step in range(6)])
    file = tmp_path / "run/worker_0/grad_float32" / chunk
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[:-1])
    with GradientStore.open(tmp_path / "run", "a") as store:
        if stops:
            fact = "is missing" if how == "missing" else "has 47 of 48 bytes"
            with pytest.raises(StoreFormatError, match=rf"c\.1\.0 {fact}; restore it"):
                store.append_rows([row(6, {"float32": 3})])
        else:
            store.append_rows([row(6, {"float32": 3})])
        assert len(store.stream()) == 6 + (not stops)


def test_the_room_of_rows_to_come_takes_no_disk(tmp_path):
    with created(tmp_path / "run", 250_000) as store:
        store.append_rows([row(0, {"float32": 250_000})])
        file = tmp_path / "run/worker_0/grad_float32/c.0.0"
        assert file.stat().st_size == 8_000_000
        assert 1_000_000 <= store.nbytes < 1_300_000


def test_a_reader_sees_whole_rows_while_a_chunk_grows(tmp_path, tiny):
    width, ended, wrong = 7, threading.Event(), []
    rows = [row(step, {"float32": width}) for step in range(150)]
    with created(tmp_path / "run", width) as store:
        store.append_rows(rows[:1])

        def look():
            while not ended.is_set():
                stream = GradientStore.open(tmp_path / "run").stream()
                last = len(stream) - 1
                values = np.asarray(stream.arrays["grad_float32"][last])
                expected = bits(rows[last].flat["float32"])
                if (
                    not same(stream, last, rows[last])
                    or (values.view("i4") != expected.numpy()).any()
                ):
                    wrong.append(last)

        reader = threading.Thread(target=look)
        reader.start()
        for each in rows[1:]:
            store.append_rows([each])
        ended.set()
        reader.join()
    assert wrong == []


def test_the_rest_of_a_row_that_was_never_committed_is_overwritten(tmp_path, tiny):
    """A kill in the middle of a row leaves bytes of it in the chunk of committed rows."""
    with created(tmp_path / "run", 5) as store:
        store.append_rows([row(0, {"float32": 5}), row(1, {"float32": 5})])
    file = tmp_path / "run/worker_0/grad_float32/c.0.0"
    content = file.read_bytes()
    file.write_bytes(content[:40] + b"\xff" * (len(content) - 40))
    stream = GradientStore.open(tmp_path / "run").stream()
    assert all(same(stream, index, row(index, {"float32": 5})) for index in (0, 1))
    with GradientStore.open(tmp_path / "run", "a") as store:
        store.append_rows([row(2, {"float32": 5})])
        stream = store.stream()
    assert all(same(stream, index, row(index, {"float32": 5})) for index in range(3))
