"""Everything that gradstats does on a GPU, checked and timed by one command.

    python analyses/11_gpu/run.py                          # six minutes on an H100
    python analyses/11_gpu/run.py --device cpu --quick     # the same parts without a GPU

Runs from a checkout with a Python that has torch, numpy, scipy and triton; `wheels.txt` names the
rest. A check that fails is a row, and `report.json` is written after every one of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

# the most telling first, with the share of the time after which each has to end
PARTS = {"correct": 0.33, "capture": 0.42, "fast": 0.62, "hook": 0.72, "whole": 1.0}
SECONDS = 360.0


def main() -> int:
    """Write report.json; the exit code is 1 where a check failed."""
    options = parsed()
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
    started = time.monotonic()
    report: dict[str, Any] = {"machine": machine(options), "rows": []}
    for part in options.part or PARTS:
        until = started + options.seconds * PARTS[part]
        for row in rows(part, options, until):
            report["rows"].append(row)
            report["machine"]["seconds"] = round(time.monotonic() - started, 1)
            write(report, options.out)
            print(f"{row['status']:8} {row['part']}: {row['check']} {row['reason']}", flush=True)
    return int(any(row["status"] == "failed" for row in report["rows"]))


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 …, or cpu for a dry run")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute on a CPU")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; repeatable")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    parser.add_argument("--out", type=Path, default=HERE / "report.json")
    return parser.parse_args()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What it ran on; None stands for a package that isn't there."""
    import torch

    on_gpu = options.device != "cpu"
    usable = on_gpu and torch.cuda.is_available()
    versions = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "scipy", "zarr", "numba", "pandas", "constriction"):
        versions[name] = version(name)
    return {
        "device": torch.cuda.get_device_name(options.device) if usable else options.device,
        "usable": usable or not on_gpu,
        "cuda": torch.version.cuda,
        "clocks": clocks() if usable else "",
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
        "quick": options.quick,
        "threads": torch.get_num_threads(),
        "seconds": 0.0,
    }


def version(name: str) -> str | None:
    """Of a package that can be imported."""
    return metadata.version(name) if find_spec(name) else None


def clocks() -> str:
    """Current and highest clocks of the multiprocessors and the memory, as the driver says."""
    asked = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        return ""


def rows(part: str, options: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """A row for each check of a part; a part that can't begin is one row."""
    import torch
    from where import LeftOut, Where

    where = Where(torch.device(options.device), options.quick, until)
    try:
        if where.on_gpu and not torch.cuda.is_available():
            raise LeftOut("no CUDA device")
        checks = list(importlib.import_module(f"part_{part}").checks(where))
    except Exception as error:
        yield {"part": part, "check": "begin", "seconds": 0.0, **outcome(error)}
        return
    for name, work in checks:
        yield row(part, name, work, where)


def row(part: str, name: str, work: Callable[[], dict[str, Any]], where: Any) -> dict[str, Any]:
    """Make one check."""
    from where import LeftOut

    start = time.monotonic()
    try:
        if where.seconds < 0:
            raise LeftOut("out of time")
        numbers = work()
        found: dict[str, Any] = {"status": "ok", "reason": "", **numbers}
    except Exception as error:
        found = outcome(error)
    return {"part": part, "check": name, "seconds": round(time.monotonic() - start, 3), **found}


def outcome(error: Exception) -> dict[str, str]:
    """What an error makes of a check: left out where something is missing, else failed."""
    from where import LeftOut

    if isinstance(error, LeftOut):
        return {"status": "left out", "reason": str(error)}
    if isinstance(error, ImportError) and not (error.name or "").startswith("gradstats"):
        return {"status": "left out", "reason": str(error)}
    traceback.print_exception(error)
    return {"status": "failed", "reason": traceback.format_exception_only(error)[-1].strip()}


def write(report: dict[str, Any], path: Path) -> None:
    """Replace the report in one go: a run that is cut short leaves a whole one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
