"""Measure Summaries against torch.sum, replays of tracked rows, and start-up times."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import PAUSE, lower_quartile, seconds

import gradstats

ELEMENTS = 65_536
SPARSIFIERS = ("topk(0.01)", "exact-threshold(0.01)", "sidco-e(0.01)", "randomk(0.01)")
TOPK = "torch.topk"  # of one row, beside which a replay is seen
REPLAYED = (
    *SPARSIFIERS,
    *(f"ef({each})" for each in SPARSIFIERS),
    *("ef(sign)", "qsgd(bits=4)", "mxfp4", "co3(fp4)", "ef(co3(fp4))"),
)


def vectors(numel: int) -> dict[str, torch.Tensor]:
    """Return Laplace draws in several dtypes, by name."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1
    laplace = signs * torch.empty(numel).exponential_(generator=generator)
    return {
        "float32": laplace,
        "float16": laplace.half(),
        "bfloat16": laplace.bfloat16(),
        "float64": laplace.double(),
        "bfloat16 in float32": laplace.bfloat16().float(),
        "constant float32": torch.full((numel,), 0.37),
        "constant float16": torch.full((numel,), 0.37).half(),
    }


def summaries(numel: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure `summarize` over `torch.sum` of a vector, right after it and after a pause."""
    ratios = {}
    for name, grad in vectors(numel).items():
        times: dict[str, list[float]] = {"sum": [], "right after torch": [], "after a pause": []}
        gradstats.summarize(grad)
        for _ in range(rounds):
            grad.sum()
            times["sum"].append(seconds(grad.sum))
            times["right after torch"].append(seconds(lambda: gradstats.summarize(grad)))  # noqa: B023
            time.sleep(PAUSE)
            times["after a pause"].append(seconds(lambda: gradstats.summarize(grad)))  # noqa: B023
        quartiles = {each: lower_quartile(values) for each, values in times.items()}
        ratios[name] = {"sum_ms": 1e3 * quartiles.pop("sum")}
        ratios[name] |= {each: 1e3 * q / ratios[name]["sum_ms"] for each, q in quartiles.items()}
    return ratios


def tracked_run(folder: Path, steps: int, elements: int = ELEMENTS) -> Any:
    """Record a small training whose rows have so many tracked elements."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(512, 192), torch.nn.Tanh(), torch.nn.Linear(192, 8)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    path = folder / "tracked.zarr"
    with gradstats.capture(model, optimizer, path, full=None, track=elements):
        for _ in range(steps):
            inputs, targets = torch.randn(64, 512), torch.randint(0, 8, (64,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return gradstats.open(path)


def replays(steps: int) -> dict[str, float]:
    """Measure the milliseconds per tracked row of a replay by one thread, by method."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = tracked_run(Path(folder), steps)
            rows = len(run.rows("track"))
            gradstats.replay(gradstats.open(run.store.path, steps=(0, 4, 1)), REPLAYED)
            times: dict[str, list[float]] = {}
            row = torch.randn(ELEMENTS)
            for _ in range(5):
                took = seconds(lambda: torch.topk(row.abs(), ELEMENTS // 100), 100)
                times.setdefault(TOPK, []).append(1e3 * took)
                for each in REPLAYED:
                    took = seconds(lambda: gradstats.replay(run, each))  # noqa: B023
                    times.setdefault(each, []).append(1e3 * took / rows)
        return {each: lower_quartile(values) for each, values in times.items()}
    finally:
        torch.set_num_threads(before)


def starts(rounds: int) -> dict[str, float]:
    """Measure seconds of fresh processes: torch alone, with `gradstats.capture`, and `--help`."""
    commands = {
        "python": ["-c", "pass"],
        "import torch": ["-c", "import torch"],
        "import gradstats; gradstats.capture": ["-c", "import gradstats; gradstats.capture"],
        "gradstats --help": ["-m", "gradstats", "--help"],
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, words in commands.items():
            run = [sys.executable, *words]
            took = seconds(lambda: subprocess.run(run, check=True, capture_output=True))  # noqa: B023
            times.setdefault(name, []).append(took)
    return {name: lower_quartile(values) for name, values in times.items()}
