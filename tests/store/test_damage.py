"""What an error says of a damaged store: the parameter, the step and the chunk."""

import json

import numpy as np
import pytest
import torch

import gradstats
from gradstats.store import GradientStore, Row, StoreFormatError, layout, parameter_table

NAMES = ("a", "layers[0].w", "c")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two rows of three parameters of 8 elements in two chunks each, one sparse, and a track."""
    monkeypatch.setattr(layout, "CHUNK_BYTES", 48)
    shapes = [*((name, (8,), "float32") for name in NAMES), ("e", (9, 2), "float32")]
    table = parameter_table(shapes, sparse=["e"])
    with GradientStore.create(tmp_path / "run.zarr", table) as store:
        store.set_track({"float32": np.array([1, 9])})
        for step in (5, 9):
            present = np.ones(4, bool)
            ragged = {"indices_3": np.array([1]), "values_3": np.ones(2, "float32")}
            flat = {"float32": torch.arange(24.0)}
            store.append_rows([Row(step, flat, present, ragged=ragged)])
            store.append_rows([Row(step, {"float32": torch.ones(2)}, present)], kind="track")
    return tmp_path / "run.zarr"


def read(run, kind="full", row=1, name=None):
    return GradientStore.open(run).stream(0, kind).read(row, name)


LOST = {
    "grad_float32/c.1.0": (lambda run: read(run), "'a', 'layers[0].w' in row 1 (step 9)"),
    "grad_float32/c.1.1": (lambda run: read(run, name="c"), "'c' in row 1 (step 9)"),
    "grad_float32/c.0.1": (
        lambda run: read(run, row=0, name="layers[0].w"),
        "'layers[0].w' in row 0 (step 5)",
    ),
    "track/grad_float32/c.0.0": (lambda run: read(run, "track"), "'a', 'layers[0].w' in row 1"),
    "track/element_ids_float32/c.0": (lambda run: read(run, "track"), "the places of tracked"),
    "values_3_data/c.0": (lambda run: read(run, name="e"), "values of 'e' in row 1 (step 9)"),
    "indices_3_ends/c.0": (
        lambda run: read(run, name="e"),
        "indices of 'e' in rows 0 to 1 (steps 5 to 9)",
    ),
    "step/c.0": (lambda run: GradientStore.open(run).stream().steps, "rows 0 to 1"),
    "loss/c.0": (lambda run: gradstats.open(run), "rows 0 to 1"),
    "present/c.0.0": (lambda run: read(run, name="a"), "rows 0 to 1 (steps 5 to 9)"),
}


@pytest.mark.parametrize("how", ["missing", "cut", "long"])
@pytest.mark.parametrize(("chunk", "asked"), LOST.items(), ids=LOST)
def test_a_lost_chunk_names_the_parameter_the_step_and_its_key(run, how, chunk, asked):
    read_it, holds = asked
    file = run / "worker_0" / chunk
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(content + b"1" if how == "long" else content[: len(content) // 2])
    with pytest.raises(StoreFormatError) as error:
        read_it(run)
    message = str(error.value)
    fact = f"{file.name} is missing"
    if how != "missing":
        fact = f"{file.name} is damaged: it has {file.stat().st_size} of {len(content)} bytes"
    assert f"{run}/worker_0/{chunk.rpartition('/')[0]}: chunk {fact}; it holds {holds}" in message
    assert f"(key worker_0/{chunk})" in message


def gone(name):
    return lambda metadata: metadata.pop(name)


DAMAGE = {
    "codec": (lambda m: m["grad_float32"].update(codecs=[{"name": "mine"}]), "codec: 'mine'"),
    "dtype": (lambda m: m["grad_float32"].update(data_type="float7"), "float7"),
    "no codecs": (lambda m: m["grad_float32"].pop("codecs"), "worker_0/zarr.json: its metadata"),
    "no shape": (lambda m: m["loss"].pop("shape"), r"an array in .*worker_0/zarr.json is damaged"),
    "no vector": (gone("grad_float32"), "grad_float32 is not there where the parameter table"),
    "not present": (gone("present"), "present is not there where the parameter table has 4"),
    "narrow": (
        lambda m: m["grad_float32"].update(shape=[2, 23]),
        "grad_float32 has 23 where the parameter table has 24 columns",
    ),
}


@pytest.mark.parametrize(("change", "fact"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_metadata_is_a_store_error_that_names_the_file_or_the_array(run, change, fact):
    file = run / "worker_0/zarr.json"
    document = json.loads(file.read_bytes())
    change(document["consolidated_metadata"]["metadata"])
    file.write_text(json.dumps(document))
    with pytest.raises(StoreFormatError, match=rf"{fact}.*restore it from a copy"):
        read(run)


@pytest.mark.parametrize("table", [[{"name": "a"}], 0, [1]])
def test_a_damaged_parameter_table_is_a_store_error(run, table):
    document = json.loads((run / "zarr.json").read_bytes())
    document["attributes"]["parameters"] = table
    (run / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreFormatError, match=r"table in its zarr\.json is damaged"):
        GradientStore.open(run)
