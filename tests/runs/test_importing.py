"""What of a file is imported: formats, entries that hold no gradients, and failures."""

import builtins
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

import gradstats
from gradstats.runs.importing import import_gradients
from gradstats.runs.importing.formats import load
from gradstats.store import GradientStore


@pytest.fixture
def grads():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 4)).astype("float32") for _ in range(3)]


@pytest.fixture
def tensors(grads):
    return {"w": torch.from_numpy(grads[0]), "b": torch.from_numpy(grads[1][0].copy())}


def imported(files, out, **settings):
    """What was printed."""
    lines = []
    import_gradients(files, out, say=lines.append, **settings).close()
    return "\n".join(lines)


def read(out, row=0):
    """By name, the gradients of a row, those that there are."""
    stream = GradientStore.open(out).stream()
    names = [p.name for p, has in zip(stream.table, stream.present[row], strict=True) if has]
    return {name: stream.read(row, name) for name in names}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_npy_files_become_rows_in_the_order_of_their_numbers(tmp_path, grads):
    files = [tmp_path / f"grad_{step}.npy" for step in (100, 9, 10)]
    for file, grad in zip(files, grads, strict=True):
        np.save(file, grad)
    with import_gradients(files, tmp_path / "run.zarr") as store:
        stream = store.stream()
    assert stream.steps.tolist() == [9, 10, 100]
    for row, grad in enumerate([grads[1], grads[2], grads[0]]):
        np.testing.assert_array_equal(stream.read(row, "gradient").numpy(), grad)


def save(tensors, file):
    if file.suffix == ".npz":
        np.savez(file, **tensors)
    elif file.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors, file)
    elif file.suffix in (".h5", ".hdf5"):
        with pytest.importorskip("h5py").File(file, "w") as opened:
            for name, tensor in tensors.items():
                opened[name] = tensor.numpy()
    else:
        torch.save(tensors, file)


SUFFIXES = [".npz", ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".PT", ".h5", ".hdf5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_arrays_that_were_saved(tmp_path, tensors, suffix):
    file = tmp_path / f"step5{suffix}"
    save(tensors, file)
    found = load(file).arrays
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(torch.as_tensor(found[name]), tensor)


def test_names_order_and_step_round_trip(tmp_path, tensors):
    torch.save(tensors, tmp_path / "step5.pt")
    torch.save(dict(reversed(tensors.items())), tmp_path / "step6.pt")
    imported([tmp_path], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr", 0), tensors)
    assert_same(read(tmp_path / "run.zarr", 1), tensors)
    assert gradstats.open(tmp_path / "run.zarr").stream().steps.tolist() == [5, 6]


def test_arrays_and_numbers_of_numpy_in_a_file_of_torch_are_read(tmp_path, grads):
    content = {"w": grads[0], "loss": np.float64(0.5), "step": np.int64(7), "n": np.arange(3)}
    torch.save(content, tmp_path / "g.pt")
    lines = imported([tmp_path / "g.pt"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), {"w": torch.from_numpy(grads[0])})
    assert "loss (float64), step (int64), n (int64)" in lines


def test_a_file_of_before_torch_1_6_is_read(tmp_path, tensors):
    torch.save(tensors, tmp_path / "g.pt", _use_new_zipfile_serialization=False)
    imported([tmp_path / "g.pt"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_bare_tensor_keeps_its_dtype(tmp_path, dtype):
    tensor = torch.randn(7, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0], tensor[1] = torch.nan, torch.inf
    torch.save(tensor, tmp_path / "g.pt")
    imported([tmp_path / "g.pt"], tmp_path / "run.zarr")
    bits = [each.view(torch.uint8) for each in (read(tmp_path / "run.zarr")["gradient"], tensor)]
    assert torch.equal(*bits)


def test_arrays_of_other_layouts_are_the_same_arrays(tmp_path, grads):
    np.savez(
        tmp_path / "g.npz",
        big=grads[0].astype(">f8"),
        turned=np.asfortranarray(grads[1]),
        reversed=grads[2][::-1, ::2],
    )
    imported([tmp_path / "g.npz"], tmp_path / "run.zarr")
    found = read(tmp_path / "run.zarr")
    for name, expected in zip(found, (grads[0], grads[1], grads[2][::-1, ::2]), strict=True):
        np.testing.assert_array_equal(found[name].numpy(), expected)
    assert found["big"].dtype == torch.float64


def test_what_is_no_gradient_is_left_out_and_printed(tmp_path, tensors):
    """A checkpoint with buffers: counters, masks, numbers, words, and no gradient."""
    more = {
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.ones(3, dtype=torch.bool),
        "phase": torch.ones(2, dtype=torch.complex64),
        "step": 7,
        "lr": 0.1,
        "note": "mine",
        "frozen": None,
    }
    for step in (1, 2):
        torch.save({**more, **tensors}, tmp_path / f"step{step}.pt")
    lines = imported([tmp_path], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr", 1), tensors)
    named = (
        "bn.num_batches_tracked (int64), mask (bool), phase (complex64), step (int), lr (float)"
    )
    assert f"{named}, note (str), frozen (NoneType)" in lines
    assert lines.count("mask") == 1


def test_numbers_that_savez_made_arrays_are_left_out_and_scalar_parameters_are_not(
    tmp_path, grads
):
    np.savez(tmp_path / "a.npz", w=grads[0], step=7, lr=0.1, scale=np.float32(2), name="x")
    lines = imported([tmp_path / "a.npz"], tmp_path / "a.zarr")
    assert set(read(tmp_path / "a.zarr")) == {"w", "scale"}
    assert "step (int64), lr (float), name (<U1)" in lines
    np.savez(tmp_path / "b.npz", w=grads[0].astype(float), scale=np.float64(2))
    imported([tmp_path / "b.npz"], tmp_path / "b.zarr")
    assert set(read(tmp_path / "b.zarr")) == {"w", "scale"}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: {"step": 5, "model_state": t},
        lambda t: {"state_dict": t, "epoch": 2},
        lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        lambda t: {"grads": t, "weights": {"w": torch.ones(3, 4)}},
        lambda t: {**t, "optimizer_state": {"m": torch.ones(3)}, "history": [1, 2]},
        lambda t: {"state_dict": {**t, "count": torch.tensor(3)}},
    ],
)
def test_the_entry_that_holds_the_gradients_is_found(tmp_path, tensors, wrapped):
    torch.save(wrapped(tensors), tmp_path / "step_5.pt")
    lines = imported([tmp_path / "step_5.pt"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), tensors)
    others = set(wrapped(tensors)) - set(tensors)
    for name in others & {"optimizer", "optimizer_state", "weights", "step", "epoch", "history"}:
        assert f"{name} (" in lines


def test_a_folder_of_checkpoints_is_imported_without_their_other_files(tmp_path, tensors):
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save(tensors, folder / "pytorch_model.bin")
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}}, folder / "optimizer.pt")
        torch.save(torch.ones(4, dtype=torch.uint8), folder / "rng_state_0.pth")
        torch.save({"seed": 1}, folder / "training_args.bin")
    lines = imported([tmp_path], tmp_path / "run.zarr")
    assert gradstats.open(tmp_path / "run.zarr").stream().steps.tolist() == [2, 10]
    assert "files without gradients: optimizer.pt, rng_state_0.pth, training_args.bin" in lines
    torch.save(tensors, tmp_path / "checkpoint-2/other.pt")
    with pytest.raises(ValueError, match=r"same in '.*other' and '.*model'; give one file per"):
        imported([tmp_path / "checkpoint-2", tmp_path / "checkpoint-10"], tmp_path / "x.zarr")


def state_of(tensors):
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in tensors.values()]
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def test_the_state_of_an_optimizer_is_no_gradient(tmp_path, tensors):
    file, state = tmp_path / "optim.pt", state_of(tensors)
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"optim\.pt: it is the state of an optimizer.*--key"):
        imported([file], tmp_path / "run.zarr")
    imported([file], tmp_path / "all.zarr", key="*")
    assert "state.0.exp_avg" in read(tmp_path / "all.zarr")
    for number, held in enumerate(({"opt_d": state}, {"both": [state, state]})):
        torch.save({"generator": tensors, **held}, file)
        lines = imported([file], tmp_path / f"{number}.zarr")
        expected = {f"generator.{name}": tensor for name, tensor in tensors.items()}
        assert_same(read(tmp_path / f"{number}.zarr"), expected)
        assert f"{next(iter(held))} (no gradients)" in lines
    torch.save({"trainer": {"model": tensors, "opt_d": state, "step": 7}}, file)
    lines = imported([file], tmp_path / "nested.zarr")
    assert_same(read(tmp_path / "nested.zarr"), {f"trainer.{n}": t for n, t in tensors.items()})
    assert "trainer.opt_d (no gradients), trainer.step (int)" in lines
    imported([file], tmp_path / "asked.zarr", key="trainer")
    assert_same(read(tmp_path / "asked.zarr"), tensors)
    imported([file], tmp_path / "moments.zarr", key="trainer.opt_d")
    assert "state.1.exp_avg" in read(tmp_path / "moments.zarr")


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_a_file_without_entries_or_with_none_alone_says_so(tmp_path, suffix):
    save({}, tmp_path / f"g{suffix}")
    with pytest.raises(ValueError, match="got dict without entries"):
        imported([tmp_path / f"g{suffix}"], tmp_path / "run.zarr")
    torch.save({"w": None}, tmp_path / "a.pt")
    torch.save([("w", None), ("b", None)], tmp_path / "b.pt")
    facts = {"a": "its one entry is None, so no parameter", "b": "all 2 entries are None"}
    for name, fact in facts.items():
        with pytest.raises(ValueError, match=fact):
            imported([tmp_path / f"{name}.pt"], tmp_path / "run.zarr")


def test_a_tensor_without_elements_of_its_own_is_named(tmp_path, tensors):
    torch.save({**tensors, "m": torch.ones(2, 3, device="meta")}, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=r"g\.pt: 'm' is on the meta device, a shape \[2, 3\]"):
        imported([tmp_path / "g.pt"], tmp_path / "run.zarr")


@pytest.mark.parametrize("make", [list, tuple, lambda pairs: {"grads": list(pairs)}])
def test_pairs_of_a_name_and_a_tensor_are_named_by_it(tmp_path, tensors, make):
    torch.save(make([*tensors.items(), ("frozen", None)]), tmp_path / "g.pt")
    lines = imported([tmp_path / "g.pt"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), tensors)
    assert "frozen (NoneType)" in lines


def test_files_that_are_named_as_shards_and_are_rows(tmp_path, grads):
    arrays, archives = [], []
    for number, grad in enumerate(grads, 1):
        arrays.append(tmp_path / f"frame-{number}-of-3.npy")
        np.save(arrays[-1], grad)
        archives.append(tmp_path / f"part-{number}-of-3.npz")
        np.savez(archives[-1], w=grad)
    imported(arrays[::-1], tmp_path / "a.zarr")
    for row, grad in enumerate(grads):
        np.testing.assert_array_equal(read(tmp_path / "a.zarr", row)["gradient"].numpy(), grad)
    with pytest.raises(ValueError, match=r"'w' is in several of its shards; .*--step-from '\(\\d"):
        imported(archives, tmp_path / "b.zarr")
    imported(archives, tmp_path / "b.zarr", step_from=r"(\d+)-of-")
    assert gradstats.open(tmp_path / "b.zarr").stream().steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(read(tmp_path / "b.zarr", 2)["w"].numpy(), grads[2])


def test_trees_are_named_by_their_paths_and_lists_by_places(tmp_path, tensors):
    torch.save({"params": {"dense": tensors}}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").arrays.keys() == {"dense.w", "dense.b"}
    torch.save({"dense": tensors}, tmp_path / "b.pt")
    assert load(tmp_path / "b.pt").arrays.keys() == {"dense.w", "dense.b"}
    torch.save(tuple(tensors.values()), tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").arrays.keys() == {"0", "1"}
    torch.save({"grads": list(tensors.values())}, tmp_path / "d.pt")
    assert load(tmp_path / "d.pt").arrays.keys() == {"0", "1"}


def test_of_several_entries_one_is_chosen_by_name(tmp_path, tensors, call):
    halves = {name: tensor / 2 for name, tensor in tensors.items()}
    torch.save({"encoder": tensors, "ema": {"model": halves}}, tmp_path / "g.pt")
    out = tmp_path / "run.zarr"
    code, _, err = call("import", tmp_path / "g.pt", "--out", out)
    assert code == 1
    assert (
        "which entry holds the gradients is not clear: 'encoder', 'ema'; choose one with --key"
        in err
    )
    assert not out.exists()
    assert call("import", tmp_path / "g.pt", "--out", out, "--key", "encoder")[0] == 0
    assert_same(read(out), tensors)
    again = ("import", tmp_path / "g.pt", "--out", out, "--if-exists", "overwrite")
    assert call(*again, "--key", "ema.model")[0] == 0
    assert_same(read(out), halves)
    assert call(*again, "--key", "*")[0] == 0
    assert read(out).keys() == {"encoder.w", "encoder.b", "ema.model.w", "ema.model.b"}
    code, _, err = call(*again, "--key", "model")
    assert code == 2
    assert "--key: must be an entry of it, one of 'encoder', 'ema', got 'model'" in err
    assert read(out).keys() == {"encoder.w", "encoder.b", "ema.model.w", "ema.model.b"}


def test_shards_of_a_step_are_one_row(tmp_path, tensors):
    save_file = pytest.importorskip("safetensors.torch").save_file
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        files = {f"model-0000{n}-of-00002.safetensors": each for n, each in enumerate("wb", 1)}
        for file, name in files.items():
            save_file({name: tensors[name] * step}, folder / file)
        index = {"weight_map": {name: file for file, name in files.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    indices = sorted(tmp_path.glob("*/*.json"))
    ways = [tmp_path], sorted(tmp_path.glob("*/*")), indices, [tmp_path / "checkpoint-*/*.safet*"]
    for number, files in enumerate(ways):
        lines = imported(files, tmp_path / f"{number}.zarr")
        expected = {name: tensor * 10 for name, tensor in tensors.items()}
        assert_same(read(tmp_path / f"{number}.zarr", 1), expected)
        assert "2 rows" in lines
    (tmp_path / "checkpoint-10/model-00002-of-00002.safetensors").unlink()
    for files in ([tmp_path / "checkpoint-10"], indices):
        with pytest.raises((ValueError, FileNotFoundError), match=r"shard 2 of 2|00002-of-00002"):
            imported(files, tmp_path / "x.zarr")
    indices[0].write_text("[1]")
    with pytest.raises(ValueError, match="it is no index of shards"):
        imported(indices, tmp_path / "x.zarr")


def test_a_parameter_without_a_gradient_in_one_step_is_absent_there(tmp_path, tensors):
    torch.save({"w": tensors["w"]}, tmp_path / "step_0.pt")
    torch.save(tensors, tmp_path / "step_1.pt")
    torch.save({"b": tensors["b"], "w": None}, tmp_path / "step_2.pt")
    lines = imported([tmp_path], tmp_path / "run.zarr")
    found = [set(read(tmp_path / "run.zarr", row)) for row in range(3)]
    assert found == [{"w"}, {"w", "b"}, {"b"}]
    assert f"no gradient of 'w' in 1 of 3 files, {tmp_path}/step_2.pt first" in lines
    assert f"no gradient of 'b' in 1 of 3 files, {tmp_path}/step_0.pt first" in lines


def test_sparse_gradients_are_stored_dense_and_that_is_printed(tmp_path):
    torch.save({"e": torch.eye(4).to_sparse()}, tmp_path / "g.pt")
    lines = imported([tmp_path / "g.pt"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), {"e": torch.eye(4)})
    assert "stored dense: e" in lines


def test_rows_of_one_file_are_steps(tmp_path, grads, call):
    np.save(tmp_path / "all.npy", np.stack(grads))
    assert "--rows takes the first axis" in imported([tmp_path / "all.npy"], tmp_path / "a.zarr")
    code, shown, _ = call("import", tmp_path / "all.npy", "--rows", "--out", tmp_path / "b.zarr")
    assert code == 0
    assert "3 rows" in shown
    for row, grad in enumerate(grads):
        np.testing.assert_array_equal(read(tmp_path / "b.zarr", row)["gradient"].numpy(), grad)
    np.save(tmp_path / "all_2.npy", np.stack(grads[:2]))
    np.save(tmp_path / "all_10.npy", np.stack(grads[2:]))
    both = [tmp_path / "all_10.npy", tmp_path / "all_2.npy"]
    imported(both, tmp_path / "c.zarr", rows=True)
    assert gradstats.open(tmp_path / "c.zarr").stream().steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(read(tmp_path / "c.zarr", 2)["gradient"].numpy(), grads[2])
    np.savez(tmp_path / "d.npz", w=np.stack(grads), b=np.ones((2, 3)), s=np.float32(1))
    with pytest.raises(
        ValueError, match=r"one row per step, got w \[3, 3, 4\], b \[2, 3\], s \[\]"
    ):
        imported([tmp_path / "d.npz"], tmp_path / "d.zarr", rows=True)


def test_rows_of_arrays_with_one_axis_are_gradients_without_axes(tmp_path, grads):
    for dtype in ("f4", ">f8", "f2"):
        scales = np.array([0.5, -2.0, 7.0], dtype)
        np.savez(tmp_path / "g.npz", w=np.stack(grads), gamma=scales)
        imported([tmp_path / "g.npz"], tmp_path / dtype, rows=True)
        for row, scale in enumerate(scales):
            found = read(tmp_path / dtype, row)
            assert found["gamma"].shape == ()
            assert found["gamma"].item() == scale
            np.testing.assert_array_equal(found["w"].numpy(), grads[row])
    np.save(tmp_path / "one.npy", np.arange(5, dtype="f4"))
    imported([tmp_path / "one.npy"], tmp_path / "one.zarr", rows=True)
    values = [read(tmp_path / "one.zarr", row)["gradient"].item() for row in range(5)]
    assert values == [0, 1, 2, 3, 4]
    torch.save(torch.arange(5.0), tmp_path / "one.pt")
    imported([tmp_path / "one.pt"], tmp_path / "two.zarr", rows=True)
    assert read(tmp_path / "two.zarr", 4)["gradient"].item() == 4


def test_an_entry_of_objects_is_left_out_and_the_others_are_not(tmp_path, grads):
    np.savez(tmp_path / "g.npz", w=grads[0], config={"lr": 0.1}, none=np.array([None]))
    lines = imported([tmp_path / "g.npz"], tmp_path / "run.zarr")
    assert_same(read(tmp_path / "run.zarr"), {"w": torch.from_numpy(grads[0])})
    assert "config (object), none (object)" in lines


NO_FILES = {  # what lies there, and what is said of it
    "words": (b"not a zip", "it is no file of .*: it begins with b'not a zip'"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "it is a pointer of Git LFS; git lfs pull fetches the file",
    ),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "it is a web page.*download it again"),
    "empty": (b"", "it is empty"),
}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".npy"])
@pytest.mark.parametrize(("content", "fact"), NO_FILES.values(), ids=NO_FILES)
def test_a_file_that_is_something_else_is_said_to_be_that(tmp_path, suffix, content, fact):
    file = tmp_path / f"g{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=fact) as caught:
        imported([file], tmp_path / "run.zarr")
    assert "running code" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_a_zip_file_of_another_format_is_said_to_be_that(tmp_path, tensors):
    torch.save(tensors, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", w=np.ones(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as packed:  # as torch.jit.save writes it
        packed.writestr("c/constants.pkl", pickle.dumps(()))
        packed.writestr("c/data.pkl", pickle.dumps(()))
        packed.writestr("c/version", "3")
    for name, fact in {
        "a.npz": "it is a zip file, and none of numpy.savez",
        "b.pt": "it is a zip file, and none of torch.save",
        "c.pt": "it is a program of TorchScript",
    }.items():
        with pytest.raises(ValueError, match=rf"cannot read .*{name} as .*: {fact}"):
            imported([tmp_path / name], tmp_path / "run.zarr")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_half_a_file_of_torch_is_not_said_to_hold_objects(tmp_path, tensors, zipped, share):
    file = tmp_path / "g.pt"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match="damaged or not complete") as caught:
        imported([file], tmp_path / "run.zarr")
    assert "running code" not in str(caught.value)


class Mine:
    """Only running code can rebuild it."""


UNREADABLE = {
    "csv": ("g.csv", lambda file: file.write_text("1"), r"must end in \.npy.*g\.csv.*numpy\.save"),
    "pickle": ("g.pkl", lambda file: file.write_bytes(b"1"), r"runs code: save .* numpy\.savez"),
    "shards": ("__0_0.distcp", lambda file: file.write_bytes(b"1"), "dcp_to_torch"),
    "junk": ("g.pt", lambda file: file.write_bytes(b"junk"), r"cannot read .*g\.pt as \.pt"),
    "raw": ("g.bin", lambda file: file.write_bytes(bytes(99)), "it is no file of torch.save"),
    "empty": ("g.npz", lambda file: file.write_bytes(b""), r"g\.npz as \.npz: it is empty"),
    "no tensors": (
        "g.pt",
        lambda file: torch.save([1, 2], file),
        "or a dict of tensors, got list",
    ),
    "an empty dict": ("g.pt", lambda file: torch.save({"step": 7}, file), "got dict without any"),
    "an object": ("g.pt", lambda file: torch.save(Mine(), file), "only running code can rebuild"),
    "objects": ("g.npy", lambda file: np.save(file, [None, "x"]), "only running code can rebuild"),
    "integers": ("ids.npy", lambda file: np.save(file, np.arange(3)), r"ids\.npy.*got 'int64' in"),
    "no elements": ("g.npy", lambda file: np.save(file, np.ones(0)), "floating-point elements"),
    "bits": ("g.npy", lambda file: np.save(file, np.ones(3, "V2")), "bfloat16 of numpy.save"),
    "long": (
        "g.npy",
        lambda file: np.save(file, np.ones(3, "g")),
        "'gradient': dtype must be one",
    ),
    "float8": (
        "g.pt",
        lambda file: torch.save(torch.ones(3).to(torch.float8_e5m2), file),
        r"g\.pt: 'gradient': dtype must be one of .*float8_e5m2.*convert it first",
    ),
    "missing": ("g.npy", lambda file: None, "nothing is there"),
}


@pytest.mark.parametrize(("name", "write", "fact"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_imported_is_named_and_nothing_is_made(tmp_path, grads, name, write, fact):
    write(tmp_path / name)
    np.save(tmp_path / "a0.npy", grads[0])
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=fact):
        imported([tmp_path / "a0.npy", tmp_path / name], tmp_path / "run.zarr", order="given")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors", ".npy"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_truncated_file_is_named_and_nothing_is_made(tmp_path, tensors, suffix, share):
    files = [tmp_path / f"step{step}{suffix}" for step in range(2)]
    for file in files:
        np.save(file, tensors["w"]) if suffix == ".npy" else save(tensors, file)
    files[1].write_bytes(files[1].read_bytes()[: int(share * files[1].stat().st_size)])
    with pytest.raises(ValueError, match=rf"cannot read .*step1\{suffix}"):
        imported(files, tmp_path / "run.zarr")
    assert sorted(tmp_path.iterdir()) == files


def test_layouts_that_differ_are_named_and_nothing_is_made(tmp_path, grads, tensors):
    np.save(tmp_path / "g0.npy", grads[0])
    np.save(tmp_path / "g1.npy", grads[0].T)
    np.savez(tmp_path / "g2.npz", other=grads[0])
    np.savez(tmp_path / "g3.npz", gradient=np.arange(3), b=grads[0])
    torch.save(tensors, tmp_path / "g4.pt")
    torch.save({**tensors, "b": torch.ones(4, dtype=torch.int64)}, tmp_path / "g5.pt")
    np.save(tmp_path / "g6.npy", grads[0].astype(float))
    for pair, fact in {
        "g0.npy g1.npy": r"g1\.npy: 'gradient' must be float32 \[3, 4\], got float32 \[4, 3\]",
        "g0.npy g2.npz": r"g2\.npz.*names differ.*gradient, other",
        "g4.pt g5.pt": r"g5\.pt: 'b' must be float32 in every file, got 'int64'",
        "g0.npy g6.npy": r"g6\.npy: 'gradient' must be float32 \[3, 4\], got float64 \[3, 4\]",
    }.items():
        with pytest.raises(ValueError, match=fact):
            imported([tmp_path / name for name in pair.split()], tmp_path / "run.zarr")
        assert not (tmp_path / "run.zarr").exists()
    assert len(list(tmp_path.iterdir())) == 7


def test_what_was_there_stays_when_an_import_fails_or_is_interrupted(tmp_path, grads, call):
    files = [tmp_path / f"g{step}.npy" for step in range(3)]
    for file, grad in zip(files, grads, strict=True):
        np.save(file, grad)
    out = tmp_path / "run.zarr"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(files, out, progress=stop)
    assert sorted(tmp_path.iterdir()) == files
    assert call("import", *files, "--out", out)[0] == 0
    code, _, err = call("import", files[0], "--out", out)
    assert code == 1
    assert "--if-exists overwrite) replaces it" in err
    with pytest.raises(KeyboardInterrupt):
        imported(files[:1], out, progress=stop, if_exists="overwrite")
    assert len(gradstats.open(out).rows()) == 3
    with GradientStore.open(out, "a") as store:
        store.claim()
        with pytest.raises(BlockingIOError, match="is writing there"):
            imported(files[:1], out, if_exists="overwrite")
    assert len(gradstats.open(out).rows()) == 3
    assert call("import", files[0], "--out", out, "--if-exists", "overwrite")[0] == 0
    assert len(gradstats.open(out).rows()) == 1
    assert sorted(tmp_path.iterdir()) == [*files, out]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious").write_text("mine")
    with pytest.raises(ValueError, match="not a gradstats store"):
        imported(files, tmp_path / "mine", if_exists="overwrite")
    assert (tmp_path / "mine/precious").read_text() == "mine"


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path, grads):
    np.save(tmp_path / "g0.npy", grads[0])
    (tmp_path / "empty").mkdir()
    for out in ("empty", "a/b/run.zarr"):
        imported([tmp_path / "g0.npy"], tmp_path / out)
        assert len(gradstats.open(tmp_path / out).rows()) == 1
    with pytest.raises(ValueError, match="at least one file"):
        imported([], tmp_path / "x.zarr")
    with pytest.raises(ValueError, match="if_exists must be error or overwrite, got 'resume'"):
        imported([tmp_path / "g0.npy"], tmp_path / "x.zarr", if_exists="resume")


@pytest.mark.slow
def test_an_import_into_an_object_store_is_complete_or_not_there(tmp_path, grads, url):
    for step, grad in enumerate(grads):
        np.save(tmp_path / f"g{step}.npy", grad)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported([tmp_path], url, progress=stop)
    imported([tmp_path], url)
    assert len(gradstats.open(url).rows()) == 3
    with pytest.raises(FileExistsError, match="it exists"):
        imported([tmp_path], url)
    imported([tmp_path / "g1.npy"], url, if_exists="overwrite")
    np.testing.assert_array_equal(read(url)["gradient"].numpy(), grads[1])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read_is_named(tmp_path, grads):
    np.save(tmp_path / "g0.npy", grads[0])
    (tmp_path / "g0.npy").chmod(0)
    with pytest.raises(PermissionError, match="g0"):
        imported([tmp_path / "g0.npy"], tmp_path / "x.zarr")


@pytest.mark.parametrize(
    ("package", "suffix", "line"),
    [
        ("safetensors", ".safetensors", r"pip install 'gradstats\[safetensors\]'"),
        ("h5py", ".h5", r"pip install 'gradstats\[h5\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_line(
    tmp_path, monkeypatch, package, suffix, line
):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / f"g{suffix}").write_bytes(b"content")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=line):
        imported([tmp_path / f"g{suffix}"], tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"a.b": torch.ones(2), "a": {"b": torch.ones(3)}}, "*"),
        ({"x": {"a.b": torch.ones(2), "a": {"b": torch.ones(3)}}}, "x"),
        ({1: torch.ones(2), "1": torch.ones(3)}, ""),
    ],
)
def test_no_entry_takes_the_place_of_another_of_its_name(tmp_path, content, key):
    torch.save(content, tmp_path / "step_1.pt")
    with pytest.raises(ValueError, match="two entries have the name"):
        import_gradients([tmp_path / "step_1.pt"], tmp_path / "run.zarr", key=key)
    assert not (tmp_path / "run.zarr").exists()


def test_a_list_of_steps_names_what_to_do(tmp_path):
    torch.save([{"w": torch.ones(2)}, {"w": torch.ones(2)}], tmp_path / "all.pt")
    with pytest.raises(ValueError, match="if each is a step, save each to a file of its own"):
        import_gradients([tmp_path / "all.pt"], tmp_path / "run.zarr")
