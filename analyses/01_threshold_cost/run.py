"""Time threshold estimation and selection next to torch.topk and to reading the gradient once."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import gradstats
from gradstats import kernels
from gradstats.compressors import Rng, compressor
from gradstats.summary import summarize

RATIO = 0.001
SPECS = ("topk", "randomk", "threshold", "dgc", "redsync", "gaussiank")
SIDCO = [f"sidco-{variant}({RATIO}, stages={m})" for variant in ("e", "gp", "p") for m in (1, 3)]


def milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Median of `repetitions` runs after two that are not counted."""
    times = []
    for _ in range(2 + repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[2:])


def laplace(numel: int) -> torch.Tensor:
    """Laplace-distributed float32 values, `[numel]`, seed 0."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2 - 1
    return signs * torch.empty(numel).exponential_(generator=generator)


def measure(numel: int, repetitions: int) -> dict[str, float]:
    """Milliseconds by name; encoders include estimating, selecting and gathering the values."""
    grad = laplace(numel)
    rows = {
        "torch.sum": milliseconds(grad.sum, repetitions),
        "count": milliseconds(lambda: kernels.count(grad), repetitions),
        "summarize": milliseconds(lambda: summarize(grad), repetitions),
    }
    for spec in [*(f"{name}({RATIO})" for name in SPECS), *SIDCO]:
        method = compressor(spec)
        state = method.init(grad)
        rows[spec] = milliseconds(lambda m=method, s=state: m.encode(grad, s, Rng()), repetitions)
    return rows


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small size, few repetitions")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    sizes = (262_144,) if options.quick else (262_144, 2_621_440, 25_600_000)
    report = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "ratio": RATIO,
        "data": "Laplace, float32",
        "milliseconds": {str(n): measure(n, 3 if options.quick else 7) for n in sizes},
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for size, rows in report["milliseconds"].items():
        topk = rows[f"topk({RATIO})"]
        for name, value in rows.items():
            speed = f"{topk / value:7.1f}x Top-k  {value / rows['torch.sum']:6.1f} sums"
            print(f"{size:>10} {name:32} {value:9.3f} ms  {speed}")


if __name__ == "__main__":
    main()
