"""The scripts that make the reference captures, and what they made."""

import hashlib
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradstats.store import GradientStore
from tests.processes import run_script

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "make.py").exists(), reason="not in a source tree"),
]


@pytest.fixture(scope="module")
def training_data(tmp_path_factory):
    """What stands in for CIFAR-10 and WikiText-2: a few pictures of noise, a few words."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(3)
    with zipfile.ZipFile(folder / "cifar10-jpeg.zip", "w") as archive:
        for number in range(40):
            picture = io.BytesIO()
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(picture, format="JPEG")
            archive.writestr(f"train/kind{number % 10}/{number:04}.jpg", picture.getvalue())
    (folder / "wikitext2").mkdir()
    for split in ("test", "valid"):
        lines = [" ".join(f"word{n}" for n in rng.integers(0, 50, 12)) for _ in range(200)]
        with lzma.open(folder / f"wikitext2/{split}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return folder


def made(words, **environment):
    """The exit code of make.py, and what it prints to stderr."""
    ((code, _, err),) = run_script(words, ROOT, **environment)
    return code, err


@pytest.fixture
def make(tmp_path, training_data):
    """Run make.py into a folder; returns the entry of what it made, and the store."""

    def run(name, *words):
        out = Path(os.path.relpath(tmp_path, ROOT))  # a provenance must name no absolute path
        words = ["data/make.py", name, "--out", out, *words]
        code, err = made(words, GRADSTATS_DATA=training_data, OMP_NUM_THREADS=1)
        assert code == 0, err
        entry = json.loads((tmp_path / "captures.json").read_text())[name]
        check(tmp_path, entry)
        return entry, GradientStore.open(tmp_path / entry["file"])

    return run


def check(folder, entry):
    """The file is the one that is described, and no more than may be."""
    file = folder / entry["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
    assert file.stat().st_size == entry["bytes"] < 10_000_000
    assert entry["sha256"] in (folder / "README.md").read_text()
    assert {"command", "seed", "steps", "training loss", "source", "licence"} <= set(entry)


def test_the_captures_are_those_that_are_described():
    entries = json.loads((DATA / "captures.json").read_text())
    for entry in entries.values():
        check(DATA, entry)
    assert {file.name for file in DATA.glob("*.zip")} == {
        entry["file"] for entry in entries.values() if "/" not in entry["file"]
    }


def tracked(store, worker=0):
    """Ids of the tracked elements, and their rows by (step, point)."""
    stream = store.stream(worker, "track")
    rows = {
        (int(step), str(point)): stream.read(row)
        for row, (step, point) in enumerate(
            zip(stream.steps, stream.coordinates["point"], strict=True)
        )
    }
    ((_, ids),) = stream.element_ids.items()
    return torch.from_numpy(ids), rows


def whole(store, worker=0):
    stream = store.stream(worker)
    keys = zip(stream.steps, stream.coordinates["point"], strict=True)
    return {(int(step), str(point)): stream.read(row) for row, (step, point) in enumerate(keys)}


def test_the_demos_model_needs_no_data(make):
    entry, store = make("demo", "--quick", "--data", "nowhere")
    ids, rows = tracked(store)
    full = whole(store)
    assert list(full) == [(4, "reduced"), (5, "reduced")]
    assert list(rows) == [(step, "reduced") for step in range(2, 8)]
    for key, grad in full.items():
        assert len(grad) == entry["elements"] == 1_086_304
        assert torch.equal(grad[ids], rows[key])
        assert grad.abs().max() > 0
    assert store.provenance["command"][0] == "data/make.py"


def test_two_workers_have_the_parts_of_a_mean(make):
    _, store = make("resnet20_pair", "--quick")
    first, second = whole(store), whole(store, worker=1)
    assert set(second) == {(4, "local"), (5, "local")}
    for step in (4, 5):
        a, b = first[step, "local"], second[step, "local"]
        assert not torch.equal(a, b)
        # halved before they are added, which rounds nothing: the mean to the bit
        assert torch.equal(a / 2 + b / 2, first[step, "reduced"])


def test_pseudo_gradients_of_two_workers(make):
    entry, store = make("diloco", "--quick", "--data", "nowhere")
    assert entry["bytes"] < 1_000_000
    for worker in range(2):
        full, (ids, rows) = whole(store, worker), tracked(store, worker)
        assert list(full) == [(4, "outer"), (5, "outer")]
        assert list(rows) == [(step, "outer") for step in range(2, 8)]
        assert set(store.stream(worker).coordinates["inner_steps"]) == {30}
        for key, grad in full.items():
            assert torch.equal(grad[ids], rows[key])
            # AdamW moves no element by more than about its learning rate per step
            assert 0 < grad.abs().max() < 30 * 2e-3 * 2
    assert not torch.equal(whole(store)[4, "outer"], whole(store, worker=1)[4, "outer"])


def test_the_example_is_a_part_of_resnet20(make, tmp_path):
    _, store = make("resnet20", "--quick")
    to = Path(os.path.relpath(tmp_path / "small.zarr.zip", ROOT))
    entry, small = make("example", "--to", to)
    assert entry["bytes"] < 2_000_000
    full, kept = whole(store), whole(small)
    assert list(kept) == list(full)[:2]
    for key, grad in kept.items():
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.float(), full[key], rtol=2**-8, atol=0)  # half an ulp
    ids, rows = tracked(small)
    all_ids, all_rows = tracked(store)
    assert set(ids.tolist()) <= set(all_ids.tolist())
    assert list(rows) == [(step, "reduced") for step in range(4, 8)]
    for key in kept:
        assert torch.equal(rows[key], kept[key][ids])
        assert torch.equal(all_rows[key], full[key][all_ids])
    assert [p.name for p in small.parameters] == [p.name for p in store.parameters]
    before, after = (each.stream(0).coordinates["loss"] for each in (store, small))
    assert np.array_equal(before[:2], after)


def test_words_are_clipped_and_their_embeddings_tied(make):
    entry, store = make("lstm", "--quick")
    ((embedding,), others) = (
        [p for p in store.parameters if p.aliases],
        [p for p in store.parameters if not p.aliases],
    )
    assert embedding.aliases == ("head.weight",)
    assert embedding.shape == (52, 128)  # 50 words, <unk> and <eos>
    assert entry["elements"] == 52 * 128 + sum(p.numel for p in others)
    norms = store.stream().coordinates
    assert np.allclose(norms["clip_norm"], norms["grad_norm"], rtol=1e-5)
    assert 0 < entry["validation loss"] < 5


@pytest.mark.parametrize(
    ("name", "missing"), [("resnet20", "cifar10-jpeg.zip"), ("lstm", "test.txt.xz")]
)
def test_absent_data_is_named_with_where_it_comes_from(name, missing, tmp_path):
    words = ["data/make.py", name, "--quick", "--data", "nowhere", "--out", tmp_path]
    code, err = made(words)
    assert code == 1
    assert err.startswith("cannot train: ")
    for part in (missing, "GRADSTATS_DATA", "github.com/"):
        assert part in err
    assert not list(tmp_path.iterdir())


def test_a_capture_that_names_a_folder_of_the_machine_is_not_published(tmp_path):
    code, err = made(["data/make.py", "demo", "--quick", "--out", tmp_path])
    assert code == 1
    assert "names a folder of this machine" in err
    assert not list(tmp_path.iterdir())
