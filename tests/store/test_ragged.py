"""Rows of another length each, tables of a worker's own, and what older stores lack."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray

from gradstats.store import GradientStore, Row, parameter_table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def embedding_row(step, indices, values, dtype=np.float32):
    present = np.array([True, len(indices) > 0])
    ragged = {"indices_1": np.array(indices), "values_1": np.array(values, dtype)}
    return Row(step, {"float32": torch.full((3,), float(step))}, present, {}, None, ragged)


def test_sparse_gradients_take_the_room_of_what_they_hold(path):
    named = [("bias", (3,), "float32"), ("emb", (1_000_000, 2), "float32")]
    table = parameter_table(named, sparse=["emb"])
    rows = [([5, 7], [[1, 2], [3, 4]]), ([], []), ([999_999], [[-1, np.nan]])]
    with GradientStore.create(path, table) as store:
        store.append_rows([embedding_row(s, i, v) for s, (i, v) in enumerate(rows[:2])])
        store.append_rows([embedding_row(2, *rows[2])])
        assert store.nbytes < 4_000_000  # a dense row takes eight
    stream = GradientStore.open(path).stream()
    assert [stream.nnz(row, "emb") for row in range(3)] == [4, 0, 2]
    for row in (0, 2):
        grad = stream.read(row, "emb")
        exact = torch.sparse_coo_tensor(
            [rows[row][0]], rows[row][1], (1_000_000, 2), check_invariants=True
        )
        exact = exact.coalesce()
        assert grad.is_coalesced()
        assert grad.shape == (1_000_000, 2)
        assert torch.equal(grad.indices(), exact.indices())
        assert torch.equal(grad.values().nan_to_num(9), exact.values().nan_to_num(9))
    with pytest.raises(LookupError, match=r"'emb'.* row 1"):
        stream.read(1, "emb")
    assert stream.read(2).tolist() == [2, 2, 2]
    assert [p.numel for p in stream.parameters] == [3, 0]
    with pytest.raises(ValueError, match="'emb' as a tensor"), GradientStore.open(path, "a") as s:
        s.append(3, {"emb": torch.ones(1_000_000, 2)})


def test_bytes_of_any_length_come_back(path, generator):
    lengths = [0, 1, 700_000, 3_000_000, 5]
    blobs = [generator.bytes(n) for n in lengths]
    with GradientStore.create(path, parameter_table([("w", (2,), "float32")])) as store:
        with pytest.raises(ValueError, match="no such stream"):
            store.append_rows([Row(0, {}, np.ones(1, bool))], kind="summary")
        store.add_stream("summary")
        for part in ([0, 1, 2], [3, 4]):
            rows = [
                Row(s, {}, np.ones(1, bool), {}, None, {"summary": np.frombuffer(blobs[s], "u1")})
                for s in part
            ]
            store.append_rows(rows, kind="summary")
        store.add_stream("summary")
        odd = Row(9, {}, np.ones(1, bool), {}, None, {"other": np.zeros(1)})
        with pytest.raises(ValueError, match="no ragged array 'other'"):
            store.append_rows([odd], kind="summary")
    stream = GradientStore.open(path).stream(kind="summary")
    assert [stream.read_bytes(row) for row in range(5)] == blobs
    with pytest.raises(LookupError, match="hold no gradients"):
        stream.read(0)
    with pytest.raises(LookupError, match="has none"):
        GradientStore.open(path).stream(kind="shadow")
    with xarray.open_zarr(path / "worker_0/summary") as opened:
        assert opened["summary_ends"].values.tolist() == np.cumsum(lengths).tolist()


def test_a_killed_ragged_append_leaves_what_was_committed(path):
    table = parameter_table(
        [("bias", (3,), "float32"), ("emb", (9, 2), "float32")], sparse=["emb"]
    )
    with GradientStore.create(path, table) as store:
        store.append_rows([embedding_row(0, [5], [[1, 2]])])
        before = (path / "worker_0/zarr.json").read_bytes()
        store.append_rows([embedding_row(1, [6, 7], [[3, 4], [5, 6]])])
    (path / "worker_0/zarr.json").write_bytes(before)
    with GradientStore.open(path, "a") as store:
        store.append_rows([embedding_row(1, [8], [[7, 8]])])
    stream = GradientStore.open(path).stream()
    assert stream.read(0, "emb").to_dense()[5].tolist() == [1, 2]
    assert stream.read(1, "emb").to_dense().nonzero()[:, 0].tolist() == [8, 8]


def test_a_worker_may_hold_a_shard(path):
    whole = parameter_table([("w", (5, 2), "float32")])
    shard = tuple(
        replace(p, shape=(2, 2), numel=4, placement="Shard(0)", global_shape=(5, 2)) for p in whole
    )
    shard = (replace(shard[0], shard_offset=(3, 0)),)
    with GradientStore.create(path, whole) as store:
        store.claim(0)
        store.claim(1, shard)
        for worker, width in ((0, 10), (1, 4)):
            row = Row(0, {"float32": torch.arange(float(width))}, np.ones(1, bool))
            store.append_rows([row], worker)
    store = GradientStore.open(path)
    assert store.stream(0).parameters == whole
    assert store.stream(1).parameters == shard
    assert store.stream(1).read(0, "w").tolist() == [[0, 1], [2, 3]]
    with (
        GradientStore.open(path, "a") as store,
        pytest.raises(ValueError, match=r"worker 1 .*Shard\(0\) from \[3, 0\]"),
    ):
        store.claim(1)


def test_points_of_one_step_follow_each_other(path):
    with GradientStore.create(path) as store:
        for point in ("local", "reduced", "clipped"):
            store.append(4, {"w": torch.ones(2)}, point=point, clip_norm=2.0, skipped=1)
        with pytest.raises(ValueError, match="step must grow"):
            store.append(4, {"w": torch.ones(2)}, point="local")
    rows = GradientStore.open(path).stream().coordinates
    assert rows["point"].tolist() == ["local", "reduced", "clipped"]
    assert rows["skipped"].tolist() == [1, 1, 1]
    assert rows["unscaled"].tolist() == [-1, -1, -1]
    assert rows["clip_norm"].tolist() == [2, 2, 2]
    assert np.isnan(rows["loss_scale"]).all()


def test_a_store_of_before_grows_without_the_columns_it_lacks(path):
    with GradientStore.create(path) as store:
        store.append(0, {"w": torch.ones(2)})
    for name in ("zarr.json", "worker_0/zarr.json"):
        document = json.loads((path / name).read_text())
        if name == "zarr.json":
            document["attributes"]["features"] = []
        else:
            members = document["consolidated_metadata"]["metadata"]
            for column in ("loss_scale", "skipped"):
                del members[column]
        (path / name).write_text(json.dumps(document))
    with GradientStore.create(path, if_exists="resume") as store:
        store.append(1, {"w": torch.ones(2)}, skipped=1, clip_norm=1.0)
    stream = GradientStore.open(path).stream()
    assert len(stream) == 2
    assert stream.coordinates["skipped"].tolist() == [0, 0]
    assert stream.coordinates["clip_norm"].tolist()[1] == 1.0
    assert json.loads((path / "zarr.json").read_text())["attributes"]["features"]
