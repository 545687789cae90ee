"""The folder in which the mistakes are made, and the names that a session has by then."""

from pathlib import Path

import numpy as np
import torch
import zarr
from torch import nn

import gradstats
from tests.conftest import MODULE_TYPES, small_gradients, write_run


def lay(folder: Path) -> None:
    """Write the runs and files that the table's texts name into a new folder."""
    folder.mkdir()
    grads = {step: small_gradients(step) for step in range(30)}
    write_run(folder / "run.zarr", grads, full=(0, 10, 20), tracked=50, module_types=MODULE_TYPES)
    write_run(folder / "whole.zarr", {0: grads[0], 10: grads[10]})
    write_run(folder / "another.zarr", {0: grads[1], 10: grads[11]})
    (folder / "another.results").mkdir()
    (folder / "another.results" / "settings.json").write_text("{}")
    names = session()
    gradstats.capture(
        names["model"], names["optimizer"], folder / "nosteps.zarr", track=10
    ).close()
    zarr.open_group(folder / "other.zarr", mode="w").create_array("x", shape=(3,), dtype="f4")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    (folder / "broken.py").write_text("1 / 0\n")


def session() -> dict[str, object]:
    """The names that the typed Python has: a model, its optimizer, a gradient."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "gradstats": gradstats,
        "torch": torch,
        "nn": nn,
        "np": np,
        "model": model,
        "optimizer": optimizer,
        "train": train,
        "grad": torch.linspace(-1, 1, 100),
        "__name__": "typed",
    }
