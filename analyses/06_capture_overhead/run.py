"""What does capture cost the training that it looks at?"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import off_steps
import on_gpu
import stall
import sustained
import torch
import whole_run
from timing import ARCHIVE, resnet20, transformer

import gradstats

#: Quick, or not.
PAIRS = (20, 3_000)
ROWS = (2, 40)
BATCH = (2, 128)
WIDTH = (48, 720)
ROUNDS = (2, 12)
BLOCK = (2, 25)
STARTED = time.perf_counter()


@contextmanager
def _folder(at: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=at) as folder:
        yield Path(folder)


def measure(data: Path | None, at: Path | None, size: int) -> dict[str, Any]:
    """All measurements, one after the other."""
    report: dict[str, Any] = {}
    with _folder(at) as folder:
        report["off_steps"] = off_steps.measure(folder, PAIRS[size])
        _said("off-steps")
    models = {"ResNet-20": resnet20, "transformer": lambda _: transformer(WIDTH[size])}
    for name, make in models.items():
        with _folder(at) as folder:
            training = make(BATCH[size] // 4 + 1)
            spaced = stall.spaced(training, folder / "a.zarr", rows=ROWS[size] // 2, spacing=6)
        with _folder(at) as folder:
            often = stall.every_step(
                make(BATCH[size] // 4 + 1), folder / "b.zarr", blocks=(1, 3)[size]
            )
        with _folder(at) as folder:
            rows = max(2, min(500, int((2e6, 2e9)[size] / (4 * training.elements))))
            written = sustained.measure(training, folder, rows=rows, rounds=(1, 6)[size])
        stalls = {"elements": training.elements, "spaced": spaced, "every step": often}
        report.setdefault("stall", {})[name] = stalls
        report.setdefault("sustained", {})[name] = written
        _said(f"stall and writing, {name}")
    with _folder(at) as folder:
        training = resnet20(BATCH[size], data)
        report["tracked"] = stall.tracked(training, folder / "t.zarr", steps=(5, 50)[size])
        _said("tracked steps")
    with _folder(at) as folder:
        report["whole_run"] = whole_run.measure(
            resnet20(BATCH[size], data), folder, rounds=ROUNDS[size], block=BLOCK[size]
        )
        _said("whole run")
    with _folder(at) as folder:
        report["gpu"] = on_gpu.measure(folder, rows=ROWS[size], width=WIDTH[size])
    return report


def _said(what: str) -> None:
    print(f"measured by {time.perf_counter() - STARTED:.0f} s: {what}", flush=True)


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, a few steps")
    folder = os.environ.get("GRADSTATS_DATA")
    parser.add_argument("--data", type=Path, default=Path(folder) if folder else None)
    parser.add_argument("--disk", type=Path, help="folder on the disk to write to")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    there = options.data is not None and (options.data / ARCHIVE).exists()
    report = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "pictures": "CIFAR-10" if there else "noise of the shape of CIFAR-10",
        "quick": options.quick,
        "batch": BATCH[not options.quick],
        **measure(options.data, options.disk, int(not options.quick)),
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
