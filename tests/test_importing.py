import builtins
from pathlib import Path

import numpy as np
import pytest
import torch

from gradstats.importing import import_gradients, numbered_steps


@pytest.fixture
def grads():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 4)).astype("float32") for _ in range(3)]


def test_npy_files_become_rows_in_the_order_of_their_numbers(tmp_path, grads):
    files = [tmp_path / f"grad_{step}.npy" for step in (100, 9, 10)]
    for file, grad in zip(files, grads, strict=True):
        np.save(file, grad)
    with import_gradients(files, tmp_path / "run.zarr") as store:
        stream = store.stream()
    assert stream.steps.tolist() == [9, 10, 100]
    for row, grad in enumerate([grads[1], grads[2], grads[0]]):
        np.testing.assert_array_equal(stream.read(row, "gradient").numpy(), grad)


def test_unnumbered_files_are_numbered_in_natural_order():
    paths = [Path(f"g{n}_end.pt") for n in (10, 2, 1)]
    assert [p.name for _, p in numbered_steps(paths)] == ["g1_end.pt", "g2_end.pt", "g10_end.pt"]
    assert [step for step, _ in numbered_steps(paths)] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_named_tensors_round_trip(tmp_path, grads, suffix):
    named = {"w": grads[0], "b": grads[1][0]}
    tensors = {name: torch.from_numpy(array) for name, array in named.items()}
    file = tmp_path / f"step5{suffix}"
    if suffix == ".npz":
        np.savez(file, **named)
    elif suffix == ".pt":
        torch.save(tensors, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(tensors, file)
    with import_gradients([file], tmp_path / "run.zarr") as store:
        stream = store.stream()
        for name, tensor in tensors.items():
            assert torch.equal(stream.read(0, name), tensor)
    assert stream.steps.tolist() == [5]


def test_a_bare_tensor_keeps_its_bfloat16(tmp_path):
    tensor = torch.randn(7, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.save(tensor, tmp_path / "g.pt")
    with import_gradients([tmp_path / "g.pt"], tmp_path / "run.zarr") as store:
        assert torch.equal(store.stream().read(0, "gradient"), tensor)


def test_what_cannot_be_imported_is_named(tmp_path, grads):
    out = tmp_path / "run.zarr"
    with pytest.raises(ValueError, match="at least one file"):
        import_gradients([], out)
    with pytest.raises(ValueError, match=r"must end in .*got '.*g\.csv'"):
        import_gradients([tmp_path / "g.csv"], out)
    with pytest.raises(ValueError, match="different numbers"):
        numbered_steps([Path("a1.npy"), Path("b1.npy")])
    with pytest.raises(FileNotFoundError):
        import_gradients([tmp_path / "missing.npy"], out)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"cannot read .*junk\.pt as \.pt"):
        import_gradients([tmp_path / "junk.pt"], out)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="tensor or a dict of tensors, got list"):
        import_gradients([tmp_path / "list.pt"], out)
    assert not out.exists()


def test_integers_and_changing_layouts_are_refused_by_file(tmp_path, grads):
    np.save(tmp_path / "ids.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"ids\.npy.*got 'int64'"):
        import_gradients([tmp_path / "ids.npy"], tmp_path / "ints.zarr")
    np.save(tmp_path / "g0.npy", grads[0])
    np.save(tmp_path / "g1.npy", grads[0].T)
    with pytest.raises(ValueError, match=r"g1\.npy.*\[3, 4\], got float32 \[4, 3\]"):
        import_gradients([tmp_path / "g0.npy", tmp_path / "g1.npy"], tmp_path / "a.zarr")
    np.savez(tmp_path / "g2.npz", other=grads[0])
    with pytest.raises(ValueError, match=r"g2\.npz.*names differ.*gradient, other"):
        import_gradients([tmp_path / "g0.npy", tmp_path / "g2.npz"], tmp_path / "b.zarr")


def test_a_missing_safetensors_names_the_pip_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'gradstats\[safetensors\]'"):
        import_gradients([tmp_path / "g.safetensors"], tmp_path / "run.zarr")
