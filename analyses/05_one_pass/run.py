"""Time and memory of the one pass, as ratios to torch.sum of the same vector."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

import gradstats
from gradstats.kernels import counting_cpu, counting_cpu_loops
from gradstats.kernels.grid import GRIDS
from gradstats.kernels.threads import in_threads
from gradstats.summary import summarize, summarize_segments


def vectors(numel: int) -> dict[str, torch.Tensor]:
    """The data of the benchmark, float32 but where the name says otherwise."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2.0 - 1
    laplace = signs * torch.empty(numel).exponential_(generator=generator)
    kept = torch.rand(numel, generator=generator) < 0.01
    return {
        "laplace": laplace,
        "constant": torch.full((numel,), 0.37),
        "1 % not zero": torch.where(kept, laplace, 0.0),
        "zeros": torch.zeros(numel),
        "laplace that was bfloat16": laplace.bfloat16().float(),
        "laplace float64": laplace.double(),
        "laplace float16": laplace.half(),
        "laplace bfloat16": laplace.bfloat16(),
    }


def count_alone(grad: torch.Tensor) -> int:
    """The counts of float32 values and nothing else."""
    heads = grad.numpy().view(np.uint16)[1::2]

    def work(chunks: Iterator[slice]) -> np.ndarray:
        counts = counting_cpu._tables(GRIDS[torch.float32])
        for chunk in chunks:
            counting_cpu_loops.count_heads(heads[chunk], np.uint16(0), counts[1])
        return counts

    return int(counting_cpu._added(in_threads(work, len(heads))).sum())


def interleaved(works: dict[str, object], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, measured in turn so that all see the same machine.

    The first of three calls of ours is kept apart: torch's threads still spin when it begins.
    """
    times = {}
    for turn in range(rounds + 2):
        for name, work in works.items():
            for call in range(3):
                start = time.perf_counter()
                work()
                took = 1e3 * (time.perf_counter() - start)
                after = ", right after torch" if name != "sum" and call == 0 else ""
                if turn > 1:
                    times.setdefault(name + after, []).append(took)
            if "sum" in works:
                works["sum"]()
    return {name: median(each) for name, each in times.items()}


def timings(numel: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of sum, counts and summarize, by data."""
    found = {}
    for name, grad in vectors(numel).items():
        works = {"sum": grad.sum, "summarize": lambda grad=grad: summarize(grad)}
        if grad.dtype == torch.float32:
            works["counts"] = lambda grad=grad: count_alone(grad)
        found[name] = interleaved(works, rounds)
    grad = vectors(numel)["laplace"]
    short = list(range(0, 10_000 * 1_000 + 1, 1_000))
    every = list(range(0, numel + 1, 100_000))
    works = {"10,000 segments of 1,000": lambda: summarize_segments(grad[: short[-1]], short)}
    works["segments of 100,000"] = lambda: summarize_segments(grad[: every[-1]], every)
    found["segments"] = interleaved(works, 3) if numel >= short[-1] else {}
    return found


def summaries_megabytes() -> float:
    """Of 10,000 Summaries of parameters with 2,500 elements each."""
    flat = torch.randn(25_000_000)
    summarize(flat[:2_500])
    tracemalloc.start()
    kept = summarize_segments(flat, list(range(0, 25_000_001, 2_500)))
    held = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    assert len(kept) == 10_000
    return held


def extra_megabytes(threads: int) -> float:
    """The most memory that one pass over 25.6 million elements holds beside the gradient."""
    grad, before = torch.randn(25_600_000), torch.get_num_threads()
    torch.set_num_threads(threads)
    summarize(grad)  # compiled by now
    tracemalloc.start()
    summarize(grad)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    torch.set_num_threads(before)
    return peak


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short vector, no memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    numel, rounds = (1_000_000, 3) if options.quick else (25_600_000, 15)
    report = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "elements": numel,
        "milliseconds": timings(numel, rounds),
    }
    if not options.quick:
        report["megabytes"] = {
            "10,000 summaries": summaries_megabytes(),
            "extra, 1 thread": extra_megabytes(1),
            "extra, 2 threads": extra_megabytes(2),
        }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, row in report["milliseconds"].items():
        print(f"{name:18}", {each: round(value, 2) for each, value in row.items()})
        if "sum" in row:
            print(" " * 18, {each: round(value / row["sum"], 2) for each, value in row.items()})
    print(report.get("megabytes"))


if __name__ == "__main__":
    main()
