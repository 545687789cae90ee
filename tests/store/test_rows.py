"""What goes in comes out, and what cannot go in is named."""

import numpy as np
import pytest
import torch

from gradstats.store import GradientStore, Parameter, Row, layout, parameter_table

SHAPES = {"w": (5, 4), "b": (4,), "half": (3, 2), "brain": (7,), "double": (2,)}
DTYPES = dict.fromkeys(SHAPES, "float32") | {
    "half": "float16",
    "brain": "bfloat16",
    "double": "float64",
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def mixed(generator):
    """One gradient of each dtype, with values that only a bit-exact store keeps."""
    grads = {
        name: torch.randn(shape, generator=generator).to(getattr(torch, DTYPES[name]))
        for name, shape in SHAPES.items()
    }
    for grad in grads.values():
        grad.view(-1)[:2] = torch.tensor([float("nan"), -0.0])
        grad.view(-1)[-1] = float("-inf")
    return grads


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def bits(tensor):
    return tensor.contiguous().view(getattr(torch, f"int{8 * tensor.element_size()}"))


def plain_store(path, width=10, **settings):
    return GradientStore.create(path, parameter_table([("w", (width,), "float32")]), **settings)


def plain_row(step, value=0.0, width=10, **coordinates):
    flat = {"float32": torch.full((width,), float(value))}
    return Row(step, flat, np.ones(1, bool), coordinates)


def test_the_table_lays_every_dtype_out_by_itself():
    named = [(n, s, getattr(torch, DTYPES[n])) for n, s in SHAPES.items()]
    table = parameter_table(named, module_types={"w": "Linear"}, aliases={"w": ["tied"]})
    assert table[0] == Parameter("w", (5, 4), "float32", 0, 20, "Linear", ("tied",))
    assert [(p.offset, p.numel) for p in table] == [(0, 20), (20, 4), (0, 6), (0, 7), (0, 2)]
    with pytest.raises(ValueError, match="'w' twice"):
        parameter_table([("w", (1,), "float32"), ("w", (1,), "float32")])
    with pytest.raises(ValueError, match="got 'int64'"):
        parameter_table([("ids", (1,), torch.int64)])


@pytest.mark.parametrize("weights", [False, True])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, generator, weights):
    rows = [mixed(generator) for _ in range(3)]
    with GradientStore.create(tmp_path / "run") as store:
        for step, grads in enumerate(rows):
            store.append(step, grads, weights=rows[0] if weights else None)
    stream = GradientStore.open(tmp_path / "run").stream()
    assert stream.quantities == (("grad", "weight") if weights else ("grad",))
    for step, grads in enumerate(rows):
        for name, grad in grads.items():
            assert same_bits(stream.read(step, name), grad)
            if weights:
                assert same_bits(stream.read(step, name, "weight"), rows[0][name])
        whole = torch.cat([grad.flatten().double() for grad in grads.values()])
        assert torch.equal(stream.read(step).nan_to_num(9), whole.nan_to_num(9))
    if not weights:
        with pytest.raises(LookupError, match="carry none"):
            stream.read(0, quantity="weight")


def test_a_whole_row_of_two_half_precisions_is_read_without_loss(tmp_path):
    grads = {"a": torch.tensor([3e38]).bfloat16(), "b": torch.tensor([6e-8]).half()}
    with GradientStore.create(tmp_path / "run") as store:
        store.append(0, grads)
        whole = store.stream().read(0)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.stack([grads["a"][0].float(), grads["b"][0].float()]))


def test_strides_arrays_views_and_graph_tensors_are_taken_as_they_are(tmp_path, generator):
    square = torch.randn(6, 6, generator=generator)
    array = square.numpy()[::2, ::3]
    array.flags.writeable = False
    swapped = np.arange(4, dtype=">f4")
    grads = {"t": square.t(), "v": square[::2, ::3].requires_grad_(), "n": array, "s": swapped}
    with GradientStore.create(tmp_path / "run") as store:
        store.append(0, {**grads, "scalar": torch.tensor(2.0)})
        read = store.stream().read
        assert torch.equal(read(0, "t"), square.t())
        assert torch.equal(read(0, "v"), grads["v"])
        assert torch.equal(read(0, "n"), torch.tensor(array.tolist()))
        assert read(0, "s").tolist() == [0, 1, 2, 3]
        assert read(0, "scalar").shape == ()


def test_no_gradient_is_not_zero_gradient(tmp_path):
    with GradientStore.create(tmp_path / "run") as store:
        store.append(0, {"w": torch.ones(3), "b": torch.zeros(2)})
        store.append(4, {"w": torch.ones(3)})
    stream = store.stream()
    assert stream.present.tolist() == [[True, True], [True, False]]
    assert torch.equal(stream.read(0, "b"), torch.zeros(2))
    assert torch.equal(stream.read(1), torch.tensor([1.0, 1, 1, 0, 0]))
    with pytest.raises(LookupError, match=r"gradient of 'b'.*row 1 \(step 4\)"):
        stream.read(1, "b")


def test_coordinates_come_back_and_what_is_not_known_is_nan(tmp_path):
    with plain_store(tmp_path / "run", provenance={"seed": 3}) as store:
        known = {"loss": torch.tensor(0.5), "learning_rate": 0.1, "grad_norm": 2.0}
        store.append_rows([plain_row(3, micro_step=1, point="clipped", segment=2, **known)])
        store.append_rows([plain_row(4), plain_row(0, segment=3)])
    stream = GradientStore.open(tmp_path / "run").stream()
    got = {name: values.tolist() for name, values in stream.coordinates.items()}
    assert (got["step"], got["micro_step"], got["segment"]) == ([3, 4, 0], [1, 0, 0], [2, 2, 3])
    assert got["point"] == ["clipped", "unknown", "unknown"]
    assert [got[name][0] for name in known] == [0.5, 0.1, 2.0]
    assert all(np.isnan(got[name][1:]).all() for name in known)
    assert GradientStore.open(tmp_path / "run").provenance == {"seed": 3}


def test_rows_cross_chunk_borders_in_every_direction(tmp_path, generator, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 64)  # 16 float32 a chunk at most
    monkeypatch.setattr(layout, "COLUMN_CHUNK_ROWS", 4)
    values = torch.randn(11, 50, generator=generator)
    rows = [Row(i, {"float32": values[i]}, np.array([i % 2 == 0]), {"loss": i}) for i in range(11)]
    with plain_store(tmp_path / "run", width=50) as store:
        for a, b in [(0, 3), (3, 4), (4, 10), (10, 11)]:
            store.append_rows(rows[a:b])
        stream = store.stream()
    assert stream.arrays["grad_float32"].chunks == (1, 13)
    assert torch.equal(torch.stack([row for _, row in stream.rows()]), values)
    assert stream.coordinates["loss"].tolist() == list(range(11))
    assert stream.present[:, 0].tolist() == [i % 2 == 0 for i in range(11)]


def test_chunks_are_even_and_at_most_eight_megabytes():
    for width in (0, 1, 2_000_000, 2_000_001, 11_173_962):
        size = layout.chunk_elements(width, 4)
        pieces = -(-width // size)
        assert size * 4 <= 8_000_000
        assert pieces * size - width < max(pieces, 1) + (width == 0)


def test_tracked_rows_know_which_elements_they_hold(tmp_path, generator):
    table = parameter_table(
        [("a", (10,), "float32"), ("h", (4,), "float16"), ("b", (2, 5), "float32")]
    )
    ids = {"float32": np.array([0, 3, 9, 12]), "float16": np.array([], np.int64)}
    full = torch.randn(20, generator=generator)
    flat = {"float32": full[torch.from_numpy(ids["float32"])], "float16": torch.zeros(0).half()}
    with GradientStore.create(tmp_path / "run", table) as store:
        store.set_track(ids)
        store.set_track(ids)
        present = np.array([True, True, False])
        store.append_rows([Row(step, flat, present) for step in (1, 2)], kind="track")
    with GradientStore.create(tmp_path / "run", table, if_exists="resume") as store:
        store.set_track(ids)
        with pytest.raises(ValueError, match="tracks other elements"):
            store.set_track({"float32": np.array([0])})
        stream, whole = store.stream(0, "track"), store.stream()
    assert (len(stream), len(whole)) == (2, 0)
    assert [(p.name, p.offset, p.numel) for p in stream.parameters] == [
        ("a", 0, 3),
        ("h", 0, 0),
        ("b", 3, 1),
    ]
    assert stream.sampling_fraction == 4 / 24
    assert whole.sampling_fraction == 1.0
    assert torch.equal(stream.read(1, "a"), full[[0, 3, 9]])
    assert torch.equal(stream.read(1), full[[0, 3, 9, 12]])
    with pytest.raises(LookupError):
        stream.read(0, "b")


@pytest.mark.parametrize(
    "ids", [{"float32": [3, 1]}, {"float32": [1, 1]}, {"float32": [0, 10]}, {"float16": [0]}]
)
def test_tracked_elements_must_be_sorted_distinct_and_there(tmp_path, ids):
    with plain_store(tmp_path / "run") as store, pytest.raises(ValueError, match="element_ids"):
        store.set_track(ids)


def test_tracked_rows_need_tracked_elements(tmp_path):
    with plain_store(tmp_path / "run") as store:
        with pytest.raises(ValueError, match="use set_track"):
            store.append_rows([plain_row(0)], kind="track")
        with pytest.raises(LookupError, match="tracks no elements"):
            store.stream(kind="track")


@pytest.mark.parametrize(
    ("grads", "says"),
    [
        ({}, "empty mapping"),
        ({"w": torch.ones(9)}, r"'w' must be float32 \[10\], got float32 \[9\]"),
        ({"w": torch.ones(10).half()}, r"got float16 \[10\]"),
        ({"w": torch.ones(10).int()}, "got 'int32'; convert"),
        ({"w": torch.ones(10).to_sparse()}, r"it is sparse .* pass \.to_dense"),
        ({"new": torch.ones(10)}, "cannot store parameter 'new'"),
        ({"w": 3.0}, "tensor or an array, got <class 'float'>"),
    ],
)
def test_gradients_that_do_not_fit_are_named_and_leave_no_row(tmp_path, grads, says):
    with plain_store(tmp_path / "run") as store:
        store.append(0, {"w": torch.ones(10)})
        with pytest.raises((TypeError, ValueError), match=says):
            store.append(1, grads)
        store.append(1, {"w": torch.ones(10)})
        assert store.stream().steps.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (plain_row(5), r"step must grow .* last is 5 .* got 5 .* segment=1"),
        (plain_row(4, micro_step=9), "got 4"),
        (plain_row(6, segment=-1), "segment must be at least 0, got -1"),
        (plain_row(6, point="there"), "point must be one of .* got 'there'"),
        (plain_row(6, lr=0.1), "coordinates must be among .* got 'lr'"),
        (plain_row(6, width=11), r"CPU tensor float32 \[10\], got float32 \[11\]"),
        (Row(6, {}, np.ones(1, bool)), "must have dtypes"),
        (Row(6, {"float32": torch.ones(10)}, np.ones(1)), r"present must be bool \[1\]"),
        (Row(6, plain_row(6).flat, np.ones(1, bool), {}, plain_row(6).flat), "has no weights"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(tmp_path, row, says):
    with plain_store(tmp_path / "run") as store:
        store.append_rows([plain_row(5)])
        with pytest.raises(ValueError, match=says):
            store.append_rows([plain_row(5, micro_step=1), row] if row.step > 5 else [row])
        assert len(store.stream()) == 1


def test_reading_what_is_not_there_is_named(tmp_path):
    with plain_store(tmp_path / "run") as store:
        with pytest.raises(LookupError, match=r"worker 0 of .* none yet"):
            store.stream()
        store.append_rows([plain_row(0)])
        stream = store.stream()
    for row in (1, -2):
        with pytest.raises(IndexError, match=f"from -1 to 0, got {row}"):
            stream.read(row)
    with pytest.raises(ValueError, match="one of w, got 'v'"):
        stream.read(0, "v")
    with pytest.raises(ValueError, match="quantity must be"):
        stream.read(0, quantity="momentum")
    with pytest.raises(ValueError, match="mode='a'"):
        GradientStore.open(tmp_path / "run").append_rows([plain_row(1)])


def test_a_stream_is_the_rows_of_its_opening(tmp_path):
    with plain_store(tmp_path / "run") as store:
        store.append_rows([plain_row(0, 1)])
        stream = store.stream()
        store.append_rows([plain_row(1, 2)])
        assert (len(stream), len(store.stream())) == (1, 2)
        assert stream.read(-1)[0] == 1


def test_workers_write_side_by_side(tmp_path):
    path = tmp_path / "run"
    with GradientStore.create(path) as first, GradientStore.open(path, "a") as second:
        first.append(0, {"w": torch.zeros(3)}, worker=0)
        second.append(0, {"w": torch.ones(3)}, worker=3)
        assert first.workers == (0, 3)
        assert first.parameters == second.parameters
        assert second.stream(3).read(0).tolist() == [1, 1, 1]
    with pytest.raises(LookupError, match=r"worker 1 of .* it has 0, 3"):
        first.stream(1)
