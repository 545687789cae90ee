"""Files that are whole or absent, and folders of results that cannot be written."""

import errno
import os
import shutil
from itertools import product

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.fitting.resumable import fit_into
from gradstats.fitting.settings import FitSettings
from gradstats.replaying.into import replay_into
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs import parts
from gradstats.runs.parts import Parts, read_part, replacing, write_part
from tests.conftest import small_gradients, write_run

FIT = FitSettings(families=("laplace",), ratios=(0.1,), kind="track")
REPLAY = ReplaySettings(("topk(0.1)", "ef(topk(0.1))"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    grads = {step: small_gradients(step) for step in range(4)}
    return write_run(tmp_path_factory.mktemp("parts") / "run.zarr", grads, tracked=60)


def test_a_part_comes_back_bit_for_bit(tmp_path):
    value = {
        "floats": [0.1, 1e-320, float("inf"), None, True, 3],
        "tensor": torch.arange(3, dtype=torch.bfloat16),
        "nested": [{"array": np.array([1.5, np.nan])}, {"words": np.array(["a", "b"])}],
        "scalar": np.float64(0.3),
    }
    write_part(tmp_path / "one.part", value)
    again = read_part(tmp_path / "one.part")
    assert again["floats"] == value["floats"]
    assert again["tensor"].dtype == torch.bfloat16
    assert torch.equal(again["tensor"], value["tensor"])
    np.testing.assert_array_equal(again["nested"][0]["array"], value["nested"][0]["array"])
    assert again["nested"][1]["words"] == ["a", "b"]
    assert again["scalar"] == 0.3


@pytest.mark.parametrize("place", [0, 4, 40, -1])
def test_a_damaged_part_reads_as_absent(tmp_path, place):
    path = tmp_path / "one.part"
    write_part(path, {"rows": [0.5] * 20})
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    assert read_part(path) is None
    assert read_part(tmp_path / "absent.part") is None


def test_parts_after_a_gap_are_made_again(tmp_path):
    kept = Parts(tmp_path)
    for items in (2, 3, 1):
        kept.add([items] * items, items)
    assert (kept.done, [*kept.contents()]) == (6, [[2, 2], [3, 3, 3], [1]])
    kept.files[1].unlink()
    again = Parts(tmp_path)
    assert (again.done, [*again.contents()]) == (2, [[2, 2]])
    assert len([*tmp_path.iterdir()]) == 1


def test_a_file_whose_writing_fails_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("before")

    def fail():
        with replacing(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [each.name for each in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == "before"


def failing(monkeypatch, after, number):
    """Let the disk fail when files are to be put in their places, after some of them."""
    original, left = os.replace, [after]

    def replace(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        original(source, target)

    monkeypatch.setattr(parts.os, "replace", replace)


@pytest.mark.parametrize("verb", ["fit", "replay"])
@pytest.mark.parametrize(
    ("number", "after"),
    [*product([errno.ENOSPC], range(4)), (errno.EROFS, 0), (errno.EACCES, 2)],
)
def test_a_full_or_read_only_disk_is_named_with_the_remedy(
    store, tmp_path, monkeypatch, verb, number, after
):
    run, out = gradstats.open(store), tmp_path / "out"

    def work():
        fit_into(run, FIT, out) if verb == "fit" else replay_into(run, REPLAY, out)

    with monkeypatch.context() as patch:
        failing(patch, after, number)
        with pytest.raises(OSError, match=f"cannot write results to {out}.*--out") as caught:
            work()
    assert os.strerror(number) in str(caught.value)
    assert caught.value.errno == number
    assert not [*out.rglob("*.new")]
    for table in out.glob("*.parquet"):
        pandas.read_parquet(table)
    work()
    assert not (out / "parts").exists()


def test_the_command_line_names_the_folder_and_the_option(store, tmp_path, call):
    out = tmp_path / "taken"
    out.write_text("a file")
    for command in ("fit", "replay", "report"):
        code, _, err = call(command, store, "--out", out)
        assert code == 2
        assert f"Invalid value for --out: must be a folder, got '{out}'" in err
    assert out.read_text() == "a file"
    run = shutil.copytree(store, tmp_path / "run.zarr")
    (tmp_path / "run.results").write_text("a file")
    assert call("fit", run, "--families", "laplace")[0] == 2
    assert call("fit", run, "--families", "laplace", "--out", tmp_path / "other")[0] == 0
