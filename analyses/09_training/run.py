"""Does training with compressed gradients converge, what does it send, does it resume exactly?"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training import Training, join, pictures

import gradstats

Data = tuple[torch.Tensor, torch.Tensor]
RATIO, HIGHER = 0.01, 0.05
METHODS = {
    "plain DDP": "",
    "dense": "none",
    "Top-k": f"ef(topk({RATIO}))",
    "ExactThreshold": f"ef(exact-threshold({RATIO}))",
    "SIDCo-E": f"ef(sidco-e({RATIO}))",
    "Top-k, 5 %": f"ef(topk({HIGHER}))",
    "ExactThreshold, 5 %": f"ef(exact-threshold({HIGHER}))",
    "SIDCo-E, 5 %": f"ef(sidco-e({HIGHER}))",
    "ExactThreshold, velocity": f"velocity(exact-threshold({RATIO}))",
    "QSGD, 4 bits": "qsgd",
    "PowerSGD, rank 2": "ef(powersgd)",
    "CO3, fp4": "ef(co3, gamma=0.7)",
    "QSGD, shared scale": "qsgd-shared",
    "THC": "ef(thc)",
    "CLT-k": f"ef(clt-k({RATIO}))",
    "two-shot MXFP8": "twoshot(mxfp8)",
    "two-shot MXFP8, memory": "ef(twoshot(mxfp8))",
    "two-shot NVFP4": "twoshot(nvfp4)",
    "two-shot NVFP4, memory": "ef(twoshot(nvfp4))",
}
OTHER_SEED = "dense, another seed"
BIN = 20  # steps that a point of the report is the mean of


def work(rank: int, workers: int, folder: str, options: argparse.Namespace, what: str) -> None:
    """What one worker does; worker 0 writes what was found."""
    path = Path(folder)
    join(rank, workers, str(path / f"meeting-{workers}-{what}"))
    images, labels = torch.load(path / "pictures.pt", mmap=True)
    seen = (images[options.held_out :], labels[options.held_out :])
    if what == "timings":
        found: dict[str, Any] = {
            "timings": {name: timed(spec, seen, options) for name, spec in options.chosen.items()}
        }
    else:
        unseen = (images[: options.held_out].contiguous(), labels[: options.held_out])
        found = {"methods": trained(seen, unseen, options)}
        found["resumed"] = {
            name: resume(spec, seen, path, options)
            for name, spec in options.chosen.items()
            if spec
        }
    if rank == 0:
        (path / f"{what}-{workers}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends while a group is in use


def trained(seen: Data, unseen: Data, options: argparse.Namespace) -> dict[str, Any]:
    """A whole training of every method, and a dense one from another seed."""
    found: dict[str, Any] = {}
    plan = [(name, spec, 0) for name, spec in options.chosen.items()]
    plan += [] if options.only else [(OTHER_SEED, "none", 1)]
    for name, spec, seed in plan:
        training = Training(spec, seen, options.steps, options.batch, seed)
        rows = training.run(options.steps)
        end = {"accuracy": training.accuracy(unseen), "weights": training.check()}
        found[name] = {"spec": spec, "rows": binned(rows), **totals(rows), **end}
        if dist.get_rank() == 0:
            told = {key: value for key, value in found[name].items() if key != "rows"}
            print(dist.get_world_size(), name, told, flush=True)
    return found


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
    """What one run comes to: the loss of the last tenth, bytes a step, k̂/k."""
    last = rows[-len(rows) // 10 :]
    found = {"loss": fmean(row["loss"] for row in last)}
    if "nbytes" not in last[0]:
        return found
    for kind in ("nbytes", "wire"):
        found[f"{kind}_a_step"] = last[-1][kind] / len(rows)
    kept = [row["khat_over_k"] for row in rows if row["khat_over_k"] == row["khat_over_k"]]
    if kept:
        tenth = sorted(kept)[len(kept) // 10], sorted(kept)[-1 - len(kept) // 10]
        found |= {
            "khat_over_k": fmean(kept),
            "khat_over_k_10": tenth[0],
            "khat_over_k_90": tenth[1],
        }
    return found


def timed(spec: str, data: Data, options: argparse.Namespace) -> dict[str, float]:
    """Medians of milliseconds a step, and of what the hook spent of them."""
    training = Training(spec, data, options.steps, options.batch)
    training.run(options.warm_up)
    rows = training.run(options.warm_up + options.timed)
    found = {"step": 1e3 * median(row["seconds"] for row in rows)}
    for kind in ("encode", "communicate", "decode") if spec else ():
        spent = [after[kind] - before[kind] for before, after in pairwise(rows)]
        found[kind] = 1e3 * median(spent)
    return found


def resume(spec: str, data: Data, folder: Path, options: argparse.Namespace) -> bool:
    """Whether a training that stops, is saved and goes on ends with the same weights."""
    half, whole = options.resumed // 2, options.resumed
    straight = Training(spec, data, options.steps, options.batch)
    straight.run(whole)
    stopped = Training(spec, data, options.steps, options.batch)
    stopped.run(half)
    stopped.save(folder)
    again = Training(spec, data, options.steps, options.batch)
    again.load(folder)
    again.run(whole)
    return straight.check() == again.check()


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, two workers")
    parser.add_argument("--timings", action="store_true", help="only time, into the report")
    parser.add_argument(
        "--only", default="", help="globs between semicolons: those methods alone, into the report"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", help="how many processes train (2, then 4)"
    )
    folder = Path(os.environ.get("GRADSTATS_DATA", "data"))
    parser.add_argument("--data", type=Path, default=folder)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    options.steps, options.resumed, options.timed = (3, 2, 2) if options.quick else (800, 40, 60)
    options.batch, options.held_out = (4, 20) if options.quick else (128, 2_000)
    options.warm_up = 1 if options.quick else 5  # steps that are not timed
    report: dict[str, Any] = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, one thread per worker",
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "steps": options.steps,
        "batch": options.batch,
        "bin": BIN,
        "workers": {},
    }
    if options.timings or options.only:
        report = json.loads(options.out.read_text())
    globs = (options.only or "*").split(";")
    options.chosen = {
        name: spec for name, spec in METHODS.items() if any(fnmatch(name, glob) for glob in globs)
    }
    for what in ("timings",) if options.timings else ("trainings", "timings"):
        for workers in options.workers or ((2,) if options.quick else (2, 4)):
            found, report["pictures"] = launched(workers, options, what)
            kept = report["workers"].setdefault(str(workers), {})
            for part, lines in found.items():
                kept.setdefault(part, {}).update(lines)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def launched(workers: int, options: argparse.Namespace, what: str) -> tuple[dict[str, Any], str]:
    """What so many processes find, and the data they have."""
    limit = options.held_out + (100 if options.quick else 20_000)
    with tempfile.TemporaryDirectory() as folder:
        images, labels, source = pictures(options.data, limit)
        torch.save((images, labels), Path(folder) / "pictures.pt")
        mp.spawn(work, (workers, folder, options, what), nprocs=workers)
        return json.loads((Path(folder) / f"{what}-{workers}.json").read_text()), source


if __name__ == "__main__":
    main()
