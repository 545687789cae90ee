"""Copies of runs: the same rows, or fewer, narrower, as Summaries; as a folder or a zip file."""

import json
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

import gradstats
from gradstats.families import Laplace
from gradstats.runs import copying
from gradstats.runs.copying import copy
from gradstats.runs.smaller import Smaller
from gradstats.store import GradientStore, Row, StoreFormatError, parameter_table
from gradstats.summary import summarize
from tests.processes import Nursery

TABLE = parameter_table(
    [
        ("a", (4, 5), "float32"),
        ("h", (6,), "float16"),
        ("e", (10, 3), "float32"),
        ("b", (300,), "bfloat16"),
        ("c", (7,), "float32"),
    ],
    sparse=["e"],
)
IDS = {"float32": np.array([1, 5, 19, 20, 26]), "bfloat16": np.arange(0, 300, 7)}
STEPS = (0, 10, 20, 30)


def grads(step):
    rng = torch.Generator().manual_seed(step)
    return {p.name: torch.randn(p.shape, generator=rng).to(getattr(torch, p.dtype)) for p in TABLE}


def flat(step):
    g = {name: grad.flatten() for name, grad in grads(step).items()}
    return {"float32": torch.cat([g["a"], g["c"]]), "float16": g["h"], "bfloat16": g["b"]}


@pytest.fixture
def run(tmp_path):
    """Full rows with a sparse gradient and weights, tracked ones, of two workers."""
    path = tmp_path / "run.zarr"
    with GradientStore.create(path, TABLE, provenance={"created": "once"}) as store:
        for worker in range(2):
            store.set_track(IDS, worker)
            for step in STEPS:
                now = flat(step + worker)
                present = np.array([True, step != 10, step != 20, True, True])
                if step == 10:
                    now["float16"] = torch.zeros(6, dtype=torch.float16)
                ragged = {}
                if step != 20:
                    ragged = {"indices_2": np.array([2, 7]), "values_2": np.arange(6) + step}
                facts = {"loss": step / 8, "point": "local", "segment": 0, "world_size": 2}
                store.append_rows([Row(step, now, present, facts, flat(-step), ragged)], worker)
                tracked = {d: now[d][torch.from_numpy(ids)] for d, ids in IDS.items()}
                store.append_rows([Row(step, tracked, present, facts)], worker, "track")
    return path


@pytest.mark.parametrize("told", [{}, {"loss_scale": 65536.0, "unscaled": 0}])
def test_a_dtype_that_cannot_hold_what_is_stored_is_refused_by_name(tmp_path, told):
    """A loss scale takes elements beyond float16 that are within it without; none becomes inf."""
    with GradientStore.create(tmp_path / "run.zarr") as store:
        grad = torch.tensor([1.5, -2.0, torch.inf, 0.5]) * 65536
        store.append(7, {"w": grad}, **told)
    fact = r"up to 1\.31e\+05" + (", multiplied by a loss scale of 65536" if told else "")
    with pytest.raises(ValueError, match=rf"2 elements of 'w' at step 7 as float16: .* {fact};"):
        copy(tmp_path / "run.zarr", tmp_path / "half.zarr", Smaller(dtype="float16"))
    copy(tmp_path / "run.zarr", tmp_path / "copy.zarr", Smaller(dtype="bfloat16"))
    assert torch.equal(
        GradientStore.open(tmp_path / "copy.zarr").stream().read(0), grad.bfloat16()
    )


def stored(path, grad):
    with GradientStore.create(path) as store:
        store.append(7, {"w": torch.zeros(grad.shape, dtype=grad.dtype)})
        store.append(8, {"w": grad})
    return path


LOSSES = {  # dtype of the run, of the copy, the largest that fits, and what becomes 0
    ("float32", "float16"): (65504.0, 1e-9),
    ("float64", "float16"): (65504.0, 1e-9),
    ("float64", "float32"): (3e38, 1e-60),
    ("float64", "bfloat16"): (3e38, 1e-60),
    ("bfloat16", "float16"): (65280.0, 1e-9),
}


@pytest.mark.parametrize(("kinds", "values"), LOSSES.items())
def test_elements_that_a_narrower_dtype_loses_are_counted_and_refused_above_a_share(
    tmp_path, kinds, values
):
    own, dtype = kinds
    largest, tiny = values
    grad = torch.ones(5000, dtype=getattr(torch, own))
    grad[:4], grad[4], grad[5], grad[6] = tiny, largest, 0, torch.nan
    run, lines = stored(tmp_path / "run.zarr", grad), []
    copy(run, tmp_path / "few.zarr", Smaller(dtype=dtype), say=lines.append)
    (line,) = lines
    assert line.startswith("4 of 4,998 non-zero elements (0.08 %)")
    assert "4 of 4,998 non-zero elements (0.08 %), first at step 8" in line
    copied = GradientStore.open(tmp_path / "few.zarr").stream().read(1)
    assert torch.equal(copied.isnan(), grad.isnan())
    assert copied[4].isfinite()


def test_more_than_a_thousandth_is_refused_and_nothing_is_made(tmp_path, call):
    grad = torch.ones(3000)
    grad[:4] = 1e-9
    run, out = stored(tmp_path / "run.zarr", grad), tmp_path / "half.zarr"
    for path in (out, tmp_path / "half.zarr.zip"):
        code, _, err = call("copy", run, path, "--dtype", "float16")
        assert code == 1
        assert "cannot copy 4 of 3,000 non-zero elements (0.133 %) of 'w' as float16" in err
        assert "such as bfloat16, or accept the loss with --allow-loss" in err
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    code, shown, _ = call("copy", run, out, "--dtype", "float16", "--allow-loss")
    assert code == 0
    assert "4 of 3,000 non-zero elements (0.133 %) became 0, too small for float16" in shown


@pytest.mark.parametrize("how", ["dense", "sparse", "tracked", "weights"])
def test_the_share_is_that_of_each_parameter(tmp_path, how):
    """A bias is a small share of a model; none of it may be 0 without a word."""
    table = parameter_table(
        [("big", (1000, 100), "float32"), ("small", (5, 10), "float32")],
        sparse=["small"] * (how == "sparse"),
    )
    big, tiny = torch.ones(100_000), torch.full((50,), 1e-9)
    flat = {"float32": big if how == "sparse" else torch.cat([big, tiny])}
    ones = {"float32": torch.ones(100_050)}
    ragged = {"indices_1": np.arange(5), "values_1": tiny.numpy()} if how == "sparse" else {}
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.claim(0, table)
        if how == "tracked":
            store.set_track({"float32": np.arange(0, 100_050, 2)}, 0)
            flat = {"float32": flat["float32"][::2]}
        for step in (3, 4):
            kind = "track" if how == "tracked" else "full"
            rows = [Row(step, flat, np.ones(2, bool), {}, None, ragged)]
            if how == "weights":
                rows = [Row(step, ones, np.ones(2, bool), {}, flat)]
            store.append_rows(rows, 0, kind)
    half = Smaller(dtype="float16")
    count = 50 if how == "tracked" else 100
    fact = rf"{count} of {count} non-zero elements \(100 %\) of 'small' as float16: .* at step 3"
    with pytest.raises(ValueError, match=fact):
        copy(tmp_path / "run.zarr", tmp_path / "half.zarr", half)
    lines = []
    lossy = Smaller(dtype="float16", allow_loss=True)
    copy(tmp_path / "run.zarr", tmp_path / "half.zarr", lossy, say=lines.append)
    assert f"most of 'small': {count} of {count} non-zero elements (100 %)" in lines[0]


def test_infinities_are_made_only_where_they_are_asked_for(tmp_path, call):
    grad = torch.ones(100_000)
    grad[0] = 1e5
    run, out = stored(tmp_path / "run.zarr", grad), tmp_path / "half.zarr"
    code, _, err = call("copy", run, out, "--dtype", "float16")
    assert code == 1
    assert "cannot copy 1 element of 'w' at step 8 as float16: stored they are up to 1e+05" in err
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    code, shown, _ = call("copy", run, out, "--dtype", "float16", "--allow-loss")
    assert code == 0
    assert "1 element is beyond float16 and became infinite" in shown
    code, _, err = call("copy", run, out)
    assert code == 1
    assert f"cannot create {out}: it exists; choose another name" in err


def test_an_interrupted_copy_leaves_nothing(run, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    for out in ("copy.zarr", "copy.zarr.zip"):
        with pytest.raises(KeyboardInterrupt):
            copy(run, tmp_path / out, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]


def assert_equal_streams(one, other):
    assert one.table == other.table
    assert one.steps.tolist() == other.steps.tolist()
    for name, column in one.coordinates.items():
        np.testing.assert_array_equal(column, other.coordinates[name])
    np.testing.assert_array_equal(one.present, other.present)
    for row in range(len(one)):
        for quantity in one.quantities:
            for dtype in one.dtypes:
                values = [s.read_flat(row, dtype, quantity=quantity) for s in (one, other)]
                assert torch.equal(*values)


@pytest.mark.parametrize("out", ["copy.zarr", "copy.zarr.zip"])
def test_a_copy_of_all_is_the_same_run(run, tmp_path, out):
    assert copy(run, tmp_path / out) == 16
    source, made = GradientStore.open(run), GradientStore.open(tmp_path / out)
    assert made.parameters == source.parameters == TABLE
    assert made.workers == (0, 1)
    assert made.provenance["created"] == "once"
    assert made.provenance["copied"]["from"] == "run.zarr"
    for worker in range(2):
        for kind in ("full", "track"):
            assert_equal_streams(source.stream(worker, kind), made.stream(worker, kind))
        sparse = made.stream(worker).read(3, "e")
        assert sparse.to_dense()[7].tolist() == [33, 34, 35]
        with pytest.raises(LookupError):
            made.stream(worker).read(2, "e")
    ids = made.stream(1, "track").element_ids
    assert {d: v.tolist() for d, v in ids.items()} == {d: v.tolist() for d, v in IDS.items()}


def test_a_narrower_copy_rounds_each_element_and_lays_all_out_in_one_vector(run, tmp_path):
    copy(run, tmp_path / "copy.zarr", Smaller(dtype="bfloat16", steps=(10, None, 2)))
    made = GradientStore.open(tmp_path / "copy.zarr")
    assert {p.dtype for p in made.parameters} == {"bfloat16"}
    stream, track = made.stream(1), made.stream(1, "track")
    assert stream.steps.tolist() == track.steps.tolist() == [10, 30]
    expected = {name: grad.bfloat16() for name, grad in grads(31).items()}
    for name in ("a", "h", "b", "c"):
        assert torch.equal(stream.read(1, name), expected[name])
    assert stream.read(1, "e").to_dense()[2].tolist() == [30, 31, 32]
    a_and_c = torch.cat([expected["a"].flatten(), expected["c"]])[IDS["float32"]]
    assert torch.equal(track.read(1, "a"), a_and_c[:3])
    assert torch.equal(track.read(1, "c"), a_and_c[3:])
    assert torch.equal(track.read(1, "b"), expected["b"][::7])
    assert stream.coordinates["grad_norm"].shape == (2,)


def test_fewer_tracked_elements_are_a_random_choice_of_them(run, tmp_path):
    copy(run, tmp_path / "copy.zarr", Smaller(modes=("track",), track=20))
    made = GradientStore.open(tmp_path / "copy.zarr")
    assert len(made.stream()) == 0
    track = made.stream(0, "track")
    ids = track.element_ids
    assert sum(map(len, ids.values())) == 20
    assert all(set(ids[d]) <= set(IDS[d]) for d in ids)
    for row, step in enumerate(STEPS):
        for dtype, places in ids.items():
            expected = flat(step)[dtype][torch.from_numpy(places)]
            assert torch.equal(track.read_flat(row, dtype), expected)


def test_summaries_are_made_of_full_rows_where_there_are_none(run, tmp_path):
    copy(run, tmp_path / "copy.zarr.zip", Smaller(modes=("summary",), dtype="bfloat16"))
    made = gradstats.open(tmp_path / "copy.zarr.zip")
    assert made.rows("full") == []
    (at_10,) = [row for row in made.rows("summary") if made.stream("summary").steps[row] == 10]
    found = made.summaries(at_10)
    assert set(found) == {"a", "e", "b", "c"}
    assert found["a"] == summarize(grads(10)["a"])
    assert found["e"].n == 30
    assert found["e"].total == sum(range(6)) + 60
    again = tmp_path / "again.zarr"
    copy(tmp_path / "copy.zarr.zip", again)
    assert gradstats.open(again).summaries(at_10) == found


@pytest.mark.slow
def test_processes_read_a_zip_file_each_by_itself(run, tmp_path):
    copy(run, tmp_path / "copy.zarr.zip", Smaller(dtype="float32"))
    opened = gradstats.open(tmp_path / "copy.zarr.zip")
    opened.stream("track").coordinates  # noqa: B018  (read before the run travels)
    elsewhere = pickle.loads(pickle.dumps(opened))
    assert "_streams" not in elsewhere.__dict__
    assert torch.equal(elsewhere.read(10), opened.read(10))
    with ProcessPoolExecutor(1, Nursery().context) as executor:
        table = gradstats.fit(opened, families=[Laplace], executor=executor)
    assert set(table.step) == set(STEPS)


def test_a_zip_file_is_small_and_the_same_for_the_same_run(run, tmp_path):
    for name in ("one.zarr.zip", "other.zarr.zip"):
        copy(run, tmp_path / name)
    assert (tmp_path / "one.zarr.zip").read_bytes() == (tmp_path / "other.zarr.zip").read_bytes()
    on_disk = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert (tmp_path / "one.zarr.zip").stat().st_size < on_disk / 3
    with zipfile.ZipFile(tmp_path / "one.zarr.zip") as packed:
        assert packed.testzip() is None
        assert json.loads(packed.read("zarr.json"))["attributes"]["format"] == "gradstats"


def test_what_cannot_be_copied_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="no row of it is selected"):
        copy(run, tmp_path / "copy.zarr", Smaller(steps=(11, 20, 1)))
    with pytest.raises(ValueError, match="no row of it is selected"):
        copy(run, tmp_path / "copy.zarr", Smaller(modes=("shadow",)))
    with pytest.raises(ValueError, match="dtype must be one of"):
        Smaller(dtype="int8")
    with pytest.raises(ValueError, match="modes must be some of"):
        Smaller(modes=("whole",))
    with pytest.raises(ValueError, match="track must be a positive number"):
        Smaller(track=0)
    copy(run, tmp_path / "copy.zarr.zip")
    for out in ("copy.zarr.zip", "run.zarr"):
        with pytest.raises(FileExistsError):
            copy(run, tmp_path / out)
    with pytest.raises(ValueError, match="zip files are read only"):
        GradientStore.open(tmp_path / "copy.zarr.zip", "a")
    (tmp_path / "broken.zarr.zip").write_bytes((tmp_path / "copy.zarr.zip").read_bytes()[:500])
    with pytest.raises(StoreFormatError, match="not a gradstats store"):
        GradientStore.open(tmp_path / "broken.zarr.zip")


def test_room_for_more_rows_takes_no_bytes_of_a_zip_file(tmp_path):
    values = torch.randn(250_000, generator=torch.Generator().manual_seed(0))
    with GradientStore.create(tmp_path / "run.zarr") as store:
        store.append(0, {"w": values})  # a row of a megabyte, in a chunk for nine
    out = tmp_path / "copy.zarr.zip"
    copy(tmp_path / "run.zarr", out)
    assert out.stat().st_size < 1.1 * values.nbytes
    assert torch.equal(GradientStore.open(out).stream(0, "full").read(0, "w"), values)


@pytest.mark.parametrize(("width", "sizes"), [(1, [32, 8]), (50, [5] * 8), (900, [1] * 40)])
def test_large_rows_are_not_all_in_memory_together(tmp_path, monkeypatch, width, sizes):
    monkeypatch.setattr(copying, "_BATCH_BYTES", 1000)
    table = parameter_table([("w", (width,), "float32")])
    rows = [
        Row(s, {"float32": torch.full((width,), float(s))}, np.ones(1, bool)) for s in range(40)
    ]
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.append_rows(rows)
    commits, append_rows = [], GradientStore.append_rows

    def noted(store, batch, *rest):
        commits.append(len(batch))
        append_rows(store, batch, *rest)

    monkeypatch.setattr(GradientStore, "append_rows", noted)
    assert copy(tmp_path / "run.zarr", tmp_path / "copy.zarr") == 40
    assert commits == sizes
    stream = GradientStore.open(tmp_path / "copy.zarr").stream()
    assert [stream.read(step).unique().tolist() for step in range(40)] == [[s] for s in range(40)]
