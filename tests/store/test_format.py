"""Old stores always read; newer, damaged and foreign ones say so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from gradstats.store import GradientStore, Row, StoreFormatError, layout, parameter_table

STORES = Path(__file__).parent


def expected(row):
    """Values that float32, float16 and bfloat16 all hold exactly."""
    return {
        "w": torch.arange(6).reshape(2, 3).float() / 8 + row,
        "b": torch.tensor([-1.5, row]).bfloat16(),
        "h": torch.tensor([0.25 * row]).half(),
    }


def write_fixture(path):
    """Write a store that stands beside this file: once per format version, never again."""
    named = [(name, t.shape, t.dtype) for name, t in expected(0).items()]
    table = parameter_table(named, module_types={"w": "Linear"}, aliases={"w": ["tied"]})
    with GradientStore.create(path, table, provenance={"made_by": "gradstats"}) as store:
        store.set_track({"float32": np.array([1, 4])})
        for row in range(3):
            grads = {name: grad for name, grad in expected(row).items() if (name, row) != ("h", 1)}
            settings = {"loss": 2.0 - row, "point": "reduced"}
            store.append(10 * row, grads, weights=expected(7), **settings)
            flat = {"float32": expected(row)["w"].flatten()[[1, 4]]}
            tracked = Row(row, flat, np.array([True, False, False]))
            store.append_rows([tracked], kind="track")


def check_fixture(path):
    store = GradientStore.open(path)
    stream, track = store.stream(), store.stream(0, "track")
    assert store.provenance == {"made_by": "gradstats"}
    assert store.parameters[0].aliases == ("tied",)
    assert stream.steps.tolist() == [0, 10, 20]
    assert stream.coordinates["loss"].tolist() == [2, 1, 0]
    assert set(stream.coordinates["point"]) == {"reduced"}
    assert np.isnan(stream.coordinates["grad_norm"]).all()
    assert stream.present[:, 2].tolist() == [True, False, True]
    for row in range(3):
        assert torch.equal(stream.read(row, "tied"), expected(row)["w"])
        assert torch.equal(stream.read(row, "b"), expected(row)["b"])
        assert torch.equal(stream.read(row, "b", "weight"), expected(7)["b"])
        assert track.read(row).tolist() == expected(row)["w"].flatten()[[1, 4]].tolist()
    assert track.sampling_fraction == 2 / 9


@pytest.mark.parametrize("path", sorted(STORES.glob("v*")), ids=lambda path: path.name)
def test_stores_of_every_version_read(path):
    check_fixture(path)


def test_there_is_a_committed_store_of_this_version_and_one_of_its_features():
    names = [path.name for path in STORES.glob("v*")]
    assert f"v{layout.FORMAT_VERSION}" in names
    root = json.loads((STORES / "v1_shared_chunks/zarr.json").read_bytes())
    assert root["attributes"]["features"] == list(layout.FEATURES)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_ROWS", 2)
    path = tmp_path / "run.zarr"
    write_fixture(path)
    return path


def change(file, edit):
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def test_the_store_written_now_reads_like_the_committed_one(run):
    check_fixture(run)
    sizes = [p.stat() for p in run.rglob("*") if p.is_file()]
    assert GradientStore.open(run).nbytes == sum(min(s.st_size, 512 * s.st_blocks) for s in sizes)


def test_a_newer_version_is_refused(run):
    change(run / "zarr.json", lambda d: d["attributes"].update(format_version=2))
    with pytest.raises(StoreFormatError, match=r"run\.zarr: format_version 2 .*upgrade"):
        GradientStore.open(run)


def test_unknown_features_arrays_and_fields_are_read_past_but_not_extended(run):
    def later(document):
        document["attributes"]["features"] = ["summaries"]
        document["attributes"]["parameters"][0]["placement"] = "shard"

    change(run / "zarr.json", later)
    inner = {"zarr_format": 3, "node_type": "group", "attributes": {}}

    def ragged(document):
        document["consolidated_metadata"]["metadata"]["ragged"] = inner

    change(run / "worker_0/zarr.json", ragged)
    check_fixture(run)
    with pytest.raises(StoreFormatError, match="summaries; upgrade"):
        GradientStore.open(run, "a")


def test_what_is_not_a_store_is_named(tmp_path, run):
    for name, says in [("gone", "nothing is there"), ("empty", "no zarr.json")]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(StoreFormatError, match=f"{name}: .*{says}"):
            GradientStore.open(tmp_path / name)
    with pytest.raises(StoreFormatError, match="its format is unnamed"):
        GradientStore.open(run / "worker_0")
    with pytest.raises(StoreFormatError):
        GradientStore.open(run / "zarr.json")


@pytest.mark.parametrize("lost", ["zarr.json", "worker_0/zarr.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_store_without_its_metadata_says_so(run, lost, how):
    content = (run / lost).read_bytes()
    (run / lost).unlink()
    if how == "cut":
        (run / lost).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreFormatError, match=r"restore it from a copy"):
        GradientStore.open(run)


def test_streams_of_uneven_arrays_are_refused(run):
    def shorten(document):
        document["consolidated_metadata"]["metadata"]["loss"]["shape"] = [1]

    change(run / "worker_0/zarr.json", shorten)
    with pytest.raises(StoreFormatError, match="loss has 1 rows where step has 3"):
        GradientStore.open(run)


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "folder"])
def test_a_lost_chunk_is_an_error_and_never_zeros(run, how):
    chunk = run / "worker_0/grad_float32/c.1.0"
    content = chunk.read_bytes()
    chunk.unlink()
    if how in ("cut", "empty"):
        chunk.write_bytes(content[: len(content) // 2 * (how == "cut")])
    if how == "folder":
        shutil.rmtree(chunk.parent)
    stream = GradientStore.open(run).stream()
    with pytest.raises(StoreFormatError, match="grad_float32"):
        stream.read(2, "w")
    if how != "folder":
        assert torch.equal(stream.read(1, "w"), expected(1)["w"])


@pytest.mark.parametrize("name", ["step", "present"])
def test_a_lost_coordinate_is_an_error_to_readers_and_writers(run, name):
    for chunk in (run / "worker_0" / name).glob("c.*"):
        chunk.unlink()
    with pytest.raises(StoreFormatError, match=name):
        getattr(GradientStore.open(run).stream(), "steps" if name == "step" else name)
    with GradientStore.open(run, "a") as store, pytest.raises(StoreFormatError, match=name):
        store.append(30, expected(0), weights=expected(0))
    shutil.rmtree(run / "worker_0" / "loss")
    with GradientStore.open(run, "a") as store, pytest.raises(StoreFormatError, match="loss"):
        store.claim()


def test_plain_zarr_reads_a_store(run):
    root = zarr.open(str(run))
    assert root.attrs["format"] == "gradstats"
    assert root["worker_0"]["grad_float32"][1].tolist() == expected(1)["w"].flatten().tolist()
    brain = root["worker_0/grad_bfloat16"]
    assert brain.attrs["dtype"] == "bfloat16"
    bits = [expected(row)["b"].view(torch.int16).tolist() for row in range(3)]
    assert brain[:].view("int16").tolist() == bits
    assert root["worker_0"]["track"]["element_ids_float32"][:].tolist() == [1, 4]
    assert root["worker_0/point"].attrs["flag_meanings"].split()[root["worker_0/point"][0]] == (
        "reduced"
    )
    assert "worker_0" in str(root.tree())  # nothing in the folders that Zarr warns about
    for consolidated in (True, False):
        group = zarr.open_group(str(run / "worker_0"), mode="r", use_consolidated=consolidated)
        assert {array.shape[0] for _, array in group.arrays()} == {3}


def test_xarray_reads_a_store(run):
    xarray = pytest.importorskip("xarray")
    full = xarray.open_zarr(str(run / "worker_0"))
    track = xarray.open_zarr(str(run / "worker_0/track"))
    values = torch.stack([expected(row)["w"].flatten() for row in range(3)]).numpy()
    np.testing.assert_array_equal(full.grad_float32.values, values)
    np.testing.assert_array_equal(track.grad_float32.values, values[:, [1, 4]])
    assert full.coords["loss"].values.tolist() == [2, 1, 0]
    lengths = {"row": 3, "parameter": 3, "element_float32": 6}
    assert lengths.items() <= dict(full.sizes).items()
    assert track.element_ids_float32.values.tolist() == [1, 4]
    grouped = xarray.open_zarr(str(run), group="worker_0", consolidated=False)
    assert dict(grouped.sizes) == dict(full.sizes)


if __name__ == "__main__":
    layout.COLUMN_CHUNK_ROWS, layout.CHUNK_ROWS = 4, 2  # a few kilobytes
    write_fixture(STORES / "v1_shared_chunks")
