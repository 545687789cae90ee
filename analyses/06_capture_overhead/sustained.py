"""Bytes a second that reach the disk, next to writing the same bytes to one plain file.

python analyses/06_capture_overhead/sustained.py     # only these two ratios, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import Training, clocked, resnet20, transformer

import gradstats
from gradstats.store import GradientStore, Row, parameter_table

ONE, MANY = "append_rows, one row per commit", "append_rows, 32 rows a commit"
CAPTURE = "the whole of capture"


class Still(torch.optim.Optimizer):
    """Leaves the weights alone, so that recording is all there is to do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:
        """Do nothing."""


def measure(training: Training, folder: Path, *, rows: int, rounds: int) -> dict[str, Any]:
    """Megabytes of gradients a second, each way followed by fsync of every file it wrote."""
    gradient = torch.randn(training.elements)
    for parameter in training.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    ways = {
        "plain file": lambda path: _plain(path, gradient, rows),
        ONE: lambda path: _appended(path, training, gradient, rows, batch=1),
        MANY: lambda path: _appended(path, training, gradient, rows, batch=32),
        CAPTURE: lambda path: _captured(path, training, rows),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for turn in range(rounds + 1):
        for name in order[turn % 4 :] + order[: turn % 4]:
            took = _clean(ways[name], folder / "rows")
            times[name] += [took] if turn else []
    rates = {name: rows * gradient.nbytes / median(each) / 1e6 for name, each in times.items()}
    pairs = {
        name: median(p / own for p, own in zip(times["plain file"], times[name], strict=True))
        for name in (ONE, MANY, CAPTURE)
    }
    return {
        "row_bytes": gradient.nbytes,
        "rows": rows,
        "megabytes_per_second": rates,
        "times_plain": pairs,
    }


def _clean(way: Callable[[Path], float], path: Path) -> float:
    os.sync()  # nothing of the way before is left to write
    try:
        return way(path)
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _synced(path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def _plain(path: Path, gradient: torch.Tensor, rows: int) -> float:
    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for _ in range(rows):
                view = memoryview(gradient.numpy()).cast("B")
                while len(view):
                    view = view[file.write(view) :]
        _synced(path)

    return clocked(write)


def _appended(
    path: Path, training: Training, gradient: torch.Tensor, rows: int, *, batch: int
) -> float:
    named = training.model.named_parameters()
    table = parameter_table([(name, p.shape, p.dtype) for name, p in named])
    present = np.ones(len(table), dtype=bool)
    store = GradientStore.create(path, table)

    def write() -> None:
        for first in range(0, rows, batch):
            steps = range(first, min(first + batch, rows))
            store.append_rows([Row(step, {"float32": gradient}, present) for step in steps])
        store.close()
        _synced(path)

    return clocked(write)


def _captured(path: Path, training: Training, rows: int) -> float:
    optimizer = Still(training.model.parameters())
    every = gradstats.every(1)
    recording = gradstats.capture(
        training.model, optimizer, path, full=every, track=None, quiet=True
    )

    def write() -> None:
        for _ in range(rows):
            optimizer.step()
        recording.close()
        _synced(path)

    return clocked(write)


def main() -> None:
    """Print the throughput of capture over that of the plain file, by size of the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    quick = parser.parse_args().quick
    sizes = {"1 MB": (resnet20(32), 100 if quick else 500)}
    if not quick:
        sizes["100 MB"] = transformer(720), 20
    with tempfile.TemporaryDirectory() as folder:
        found = {
            size: measure(training, Path(folder), rows=rows, rounds=2 if quick else 6)
            for size, (training, rows) in sizes.items()
        }
    print(json.dumps({size: each["times_plain"][CAPTURE] for size, each in found.items()}))


if __name__ == "__main__":
    main()
