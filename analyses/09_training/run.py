"""Does training with compressed gradients converge, what does it send, does it resume exactly?"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training import BATCH, Training, join, pictures

import gradstats

RATIO = 0.01
METHODS = {
    "plain DDP": "",
    "dense": "none",
    "Top-k": f"ef(topk({RATIO}))",
    "ExactThreshold": f"ef(exact-threshold({RATIO}))",
    "SIDCo-E": f"ef(sidco-e({RATIO}))",
    "QSGD, 4 bits": "qsgd",
    "PowerSGD, rank 2": "ef(powersgd)",
    "CO3, fp4": "ef(co3, gamma=0.7)",
    "QSGD, shared scale": "qsgd-shared",
    "THC": "ef(thc)",
    "CLT-k": f"ef(clt-k({RATIO}))",
}
HELD_OUT = 2_000
BIN = 20  # steps that a point of the report is the mean of


def work(rank: int, workers: int, folder: str, options: argparse.Namespace) -> None:
    """What one worker does; worker 0 writes the rows."""
    path = Path(folder)
    join(rank, workers, str(path / f"meeting-{workers}"))
    images, labels = torch.load(path / "pictures.pt", mmap=True)
    seen = (images[HELD_OUT:], labels[HELD_OUT:])
    unseen = (images[:HELD_OUT].contiguous(), labels[:HELD_OUT])
    found: dict[str, Any] = {}
    seeds = [("dense, another seed", "none", 1)]
    for name, spec, seed in [*((name, spec, 0) for name, spec in METHODS.items()), *seeds]:
        training = Training(spec, seen, options.steps, seed)
        rows = training.run(options.steps)
        found[name] = {
            "spec": spec,
            "rows": binned(rows),
            **totals(rows),
            "accuracy": training.accuracy(unseen),
            "weights": training.check(),
        }
        if rank == 0:
            told = {key: value for key, value in found[name].items() if key != "rows"}
            print(workers, name, told, flush=True)
    resumed = {name: resume(spec, seen, path, options) for name, spec in METHODS.items() if spec}
    if rank == 0:
        report = {"methods": found, "resumed": resumed}
        (path / f"workers-{workers}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def binned(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """A point for each `BIN` steps: the mean loss, and what was sent by its end."""
    return [
        {
            "step": part[-1]["step"] + 1,
            "loss": round(fmean(row["loss"] for row in part), 5),
            "nbytes": part[-1].get("nbytes", 0),
            "wire": round(part[-1].get("wire", 0)),
        }
        for part in (rows[start : start + BIN] for start in range(0, len(rows), BIN))
    ]


def totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What one run comes to: losses, bytes and milliseconds a step, k̂/k."""
    last = rows[-len(rows) // 10 :]
    found = {
        "loss": fmean(row["loss"] for row in last),
        "milliseconds": 1e3 * median(row["seconds"] for row in rows),
    }
    if "nbytes" not in last[0]:
        return found
    for kind in ("nbytes", "wire"):
        found[f"{kind}_a_step"] = last[-1][kind] / len(rows)
    for kind in ("encode", "communicate", "decode"):
        found[f"{kind}_milliseconds"] = 1e3 * last[-1][kind] / len(rows)
    kept = [row["khat_over_k"] for row in rows if row["khat_over_k"] == row["khat_over_k"]]
    if kept:
        tenth = sorted(kept)[len(kept) // 10], sorted(kept)[-1 - len(kept) // 10]
        found |= {
            "khat_over_k": fmean(kept),
            "khat_over_k_10": tenth[0],
            "khat_over_k_90": tenth[1],
        }
    return found


def resume(spec: str, data: Any, folder: Path, options: argparse.Namespace) -> bool:
    """Whether a training that stops, is saved and goes on ends with the same weights."""
    half, whole = options.resumed // 2, options.resumed
    straight = Training(spec, data, options.steps)
    straight.run(whole)
    stopped = Training(spec, data, options.steps)
    stopped.run(half)
    stopped.save(folder)
    again = Training(spec, data, options.steps, seed=0)
    again.load(folder)
    again.run(whole)
    return straight.check() == again.check()


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, two workers")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("GRADSTATS_DATA", "data"))
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    options.steps, options.resumed = (30, 6) if options.quick else (800, 40)
    limit = HELD_OUT + (1_000 if options.quick else 20_000)
    report: dict[str, Any] = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, a thread a worker",
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "steps": options.steps,
        "batch": BATCH,
        "bin": BIN,
        "workers": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        images, labels, report["pictures"] = pictures(options.data, limit)
        torch.save((images, labels), Path(folder) / "pictures.pt")
        for workers in (2,) if options.quick else (2, 4):
            mp.spawn(work, (workers, folder, options), nprocs=workers)
            found = (Path(folder) / f"workers-{workers}.json").read_text()
            report["workers"][str(workers)] = json.loads(found)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
