"""Does Pufferfish keep the accuracy, send fewer bytes and cost nothing to encode?"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import numel
from training import METHODS, Task, Training, join, pictures, words

import gradstats
from gradstats.fitting.over_steps import rank_table
from gradstats.network import Network
from gradstats.replaying.factorised import Share, factorised_rows

WORKERS = 2
PARTS = ("compute", "encode", "communicate", "decode", "other")
NETWORKS = {"10 Gbit/s": Network(), "1 Gbit/s": Network(bandwidth=1e9 / 8)}


def task_of(name: str, options: argparse.Namespace) -> Task:
    """The task at its scale."""
    if name == "pictures":
        width, batch, seen, held = (4, 4, 100, 50) if options.quick else (16, 32, 20_000, 1_000)
        return pictures(options.data, width=width, batch=batch, seen=seen, held=held)
    return words(options.data, size=16 if options.quick else 200, batch=4 if options.quick else 10)


def work(rank: int, name: str, folder: str, options: argparse.Namespace) -> None:
    """What one worker does; worker 0 writes what was found."""
    join(rank, WORKERS, f"{folder}/meeting-{name}")
    task = task_of(name, options)
    found: dict[str, Any] = {}
    for method, how in METHODS.items():
        if not fnmatch.fnmatch(method, options.only):
            continue
        path = Path(folder) / f"{name}.zarr" if method == "dense" else None
        training = Training(task, how, options.steps[name], path)
        rows = training.run(judged=options.judged)
        found[method] = {
            "spec": how.spec,
            "switch": how.switch,
            "parameters": [training.full, numel(training.model)],
            "rows": rows,
            "milliseconds": steady(training, options.timed),
        }
        if rank == 0:
            print(name, method, found[method]["parameters"], rows[-1], flush=True)
    if rank == 0:
        (Path(folder) / f"{name}.json").write_text(
            json.dumps({"data": task.source, "methods": found})
        )
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends while a group is in use


def steady(training: Training, steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step, over more steps at the end of the training.

    The communication is that of two processes on one machine; modelled are those of eight workers.
    """
    training.spent = dict.fromkeys(PARTS, 0.0)
    seconds, traffic = training.group.seconds, training.group.traffic
    seconds.encode = seconds.communicate = seconds.decode = 0.0
    before = {kind: (volume.nbytes, volume.calls) for kind, volume in traffic.volumes.items()}
    for number in range(steps):
        training.step(training.steps - 1 - number % 2)
    found = {part: 1e3 * training.spent[part] / steps for part in PARTS}
    volumes = traffic.volumes.items()
    sent = {kind: (volume.nbytes - before[kind][0]) / steps for kind, volume in volumes}
    rounds = {kind: (volume.calls - before[kind][1]) // steps for kind, volume in volumes}
    for label, network in NETWORKS.items():
        modelled = network.all_reduce(sent["all_reduce"], rounds["all_reduce"])
        modelled += network.all_gather(sent["all_gather"], rounds["all_gather"])
        found[f"modelled at {label}"] = 1e3 * modelled
    return {**found, "nbytes": sent["all_reduce"] + sent["all_gather"]}


def captured(path: Path, share: Share) -> dict[str, Any]:
    """Effective ranks over training, and what low rank would do to these gradients."""
    run = gradstats.open(path)
    found: dict[str, Any] = {}
    for quantity in ("grad", "weight"):
        table = rank_table(run, quantity=quantity)
        table = table[table["status"] == "ok"]
        for name in ("stable_rank", "entropy_rank", "r90", "r99"):
            table[name] = table[name] / table["full"]
        columns = ["step", "parameter", "stable_rank", "entropy_rank", "r90", "r99", "full"]
        found[f"{quantity}_ranks"] = table[columns].round(4).to_dict("records")
    rows = factorised_rows(run, share=share)
    found["rows"] = json.loads(rows.to_json(orient="records", double_precision=6))
    return found


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, a few steps")
    folder = Path(os.environ.get("GRADSTATS_DATA", "data"))
    parser.add_argument("--data", type=Path, default=folder)
    parser.add_argument("--only", default="*", help="glob: those methods, into a report there is")
    parser.add_argument("--task", default="*", help="glob: those tasks, into a report there is")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    options.steps = (
        {"pictures": 4, "words": 4} if options.quick else {"pictures": 400, "words": 600}
    )
    options.judged, options.timed = (2, 2) if options.quick else (8, 10)
    report: dict[str, Any] = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, one thread per worker",
        "workers": WORKERS,
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "steps": options.steps,
        "tasks": {},
    }
    if options.only != "*" or options.task != "*":
        report = json.loads(options.out.read_text())
    share = Share(METHODS["Pufferfish"].switch, 1.0)
    for name in fnmatch.filter(("pictures", "words"), options.task):
        with tempfile.TemporaryDirectory() as folder_of_run:
            mp.spawn(work, (name, folder_of_run, options), nprocs=WORKERS)
            found = json.loads((Path(folder_of_run) / f"{name}.json").read_text())
            if "dense" in found["methods"]:
                found |= captured(Path(folder_of_run) / f"{name}.zarr", share)
        kept = report["tasks"].setdefault(name, found)
        kept["methods"] |= found["methods"]
        kept |= {part: lines for part, lines in found.items() if part != "methods"}
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
