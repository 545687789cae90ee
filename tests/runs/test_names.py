"""A run is told from one that began in its place, with whatever provenance."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import gradstats
from gradstats.runs.copying import copy
from gradstats.runs.results import run_settings
from gradstats.runs.smaller import Smaller
from gradstats.store import GradientStore, parameter_table

OLD = Path(__file__).parents[1] / "store/v1"
TABLE = parameter_table([("w", (3,), "float32")])
STORY = {"created": "once", "command": ["train.py"]}


def made(path, values, **settings):
    """A store with a row for each value, of one provenance."""
    with GradientStore.create(path, TABLE, provenance=STORY, **settings) as store:
        for step, value in enumerate(values):
            store.append(step, {"w": torch.full((3,), float(value))})
    return store.run


def test_a_run_that_begins_again_has_another_name(tmp_path):
    path = tmp_path / "run.zarr"
    first = made(path, [1, 2])
    assert made(path, [], if_exists="resume") == first == GradientStore.open(path).run
    second = made(path, [1, 2], if_exists="overwrite")
    assert first != second == GradientStore.open(path).run


def test_a_table_of_the_first_row_leaves_the_name(tmp_path):
    with GradientStore.create(tmp_path / "run.zarr") as store:
        store.append(0, {"w": torch.ones(3)})
    assert GradientStore.open(tmp_path / "run.zarr").run == store.run


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old.zarr"))


def test_a_run_without_a_name_is_continued_as_it_is_and_replaced_by_one_with(old):
    assert GradientStore.open(old).run is None
    with GradientStore.create(old, if_exists="resume") as store:
        grads = {
            p.name: torch.zeros(p.shape, dtype=getattr(torch, p.dtype)) for p in store.parameters
        }
        store.append(100, grads, weights=grads)
    assert GradientStore.open(old).run is None
    assert GradientStore.open(old).stream().steps.tolist() == [0, 10, 20, 100]
    assert "run" not in json.loads((old / "zarr.json").read_text())["attributes"]
    with GradientStore.create(old, TABLE, if_exists="overwrite") as store:
        assert store.run


def test_who_opened_a_run_that_was_replaced_writes_nothing_into_the_new_one(tmp_path):
    path = tmp_path / "run.zarr"
    made(path, [1])
    late = GradientStore.open(path, "a")
    made(path, [2], if_exists="overwrite")
    with pytest.raises(OSError, match="has been replaced or deleted since"):
        late.append(5, {"w": torch.ones(3)})
    assert GradientStore.open(path).stream().steps.tolist() == [0]


def test_results_of_a_replaced_run_are_not_those_of_the_new_one(tmp_path):
    """Both have the same provenance, as many rows, and the same last one."""
    path = tmp_path / "run.zarr"
    made(path, [1, 2])
    before = run_settings(gradstats.open(path))
    assert run_settings(gradstats.open(path)) == before
    made(path, [7, 2], if_exists="overwrite")
    assert run_settings(gradstats.open(path)) != before


def test_results_of_a_run_without_a_name_stay_valid(old):
    assert "id" not in run_settings(gradstats.open(old))


def test_a_whole_copy_is_the_same_run_and_another_is_not(tmp_path):
    path = tmp_path / "run.zarr"
    name = made(path, [1, 2])
    smaller = {
        "whole": Smaller(),
        "few": Smaller(steps=(0, 1, 1)),
        "narrow": Smaller(dtype="bfloat16"),
    }
    names = {}
    for which, what in smaller.items():
        copy(path, tmp_path / f"{which}.zarr", what)
        copy(path, tmp_path / f"{which}.zarr.zip", what)
        names[which] = GradientStore.open(tmp_path / f"{which}.zarr").run
        assert GradientStore.open(tmp_path / f"{which}.zarr.zip").run == names[which]
    assert names["whole"] == name
    assert len(set(names.values())) == 3


def test_copies_of_a_run_without_a_name_are_told_apart(old, tmp_path):
    names = set()
    for which, what in {"whole": Smaller(), "few": Smaller(steps=(0, 1, 1))}.items():
        copy(old, tmp_path / f"{which}.zarr", what)
        names.add(GradientStore.open(tmp_path / f"{which}.zarr").run)
    assert len(names) == 2
    assert None not in names
