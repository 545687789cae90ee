"""Time a step of DistributedDataParallel under each hook, all methods interleaved in one run.

    python analyses/14_limits/hook.py                      # ratios to plain DDP and torch's hooks
    python analyses/14_limits/hook.py --phases none qsgd   # where the time of a hook goes

Each worker is a process of one thread; they talk over loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timing import lower_quartile
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook


def powersgd_alone(state, bucket):  # type: ignore[no-untyped-def]
    """Run torch's PowerSGD hook, one bucket at a time.

    The rounds of its buckets are started from threads, in an order of each worker's own: over gloo
    those of two buckets may meet, which ends the process.
    """
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


WIDTHS = (512, 2048, 2048, 1792, 512, 1000)  # 10.4 million parameters
PLAIN = "plain"
TORCH = {
    "torch none": lambda: (None, default_hooks.allreduce_hook),
    "torch fp16": lambda: (None, default_hooks.fp16_compress_hook),
    "torch powersgd": lambda: (
        powerSGD_hook.PowerSGDState(None, 2, start_powerSGD_iter=2),
        powersgd_alone,
    ),
}
SPECS = ["none", "fp16", "bf16", "ef(exact-threshold(0.01))", "qsgd", "mxfp8", "ef(sign)"]
SPECS += ["ef(powersgd)"]
ASKED = {
    "none": ("torch none", 1.05),
    "fp16": ("torch fp16", 1.05),
    "bf16": ("torch fp16", 1.05),
    "ef(powersgd)": ("torch powersgd", 0.8),
    "ef(exact-threshold(0.01))": (PLAIN, 1.25),
    "qsgd": (PLAIN, 1.5),
    "mxfp8": (PLAIN, 1.5),
    "ef(sign)": (PLAIN, 1.5),
}


class Way:
    """A model that trains under one hook.

    Args:
        name: "plain", one of torch's hooks, or a spec.
        batch: examples per step and worker.
    """

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        layers = [
            part
            for before, after in pairwise(WIDTHS)
            for part in (nn.Linear(before, after), nn.ReLU())
        ]
        self.model = DistributedDataParallel(nn.Sequential(*layers[:-1]))
        if name in TORCH:
            self.model.register_comm_hook(*TORCH[name]())
        elif name != PLAIN:
            state = CompressorState(
                None, name, named_parameters=self.model.named_parameters(), check_every=100
            )
            self.model.register_comm_hook(state, compress_hook)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.x = torch.randn(batch, WIDTHS[0], generator=generator)
        self.y = torch.randint(WIDTHS[-1], (batch,), generator=generator)

    def step(self) -> float:
        """Seconds of a step, which all workers begin together."""
        dist.barrier()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        return time.perf_counter() - start


def quartiles(names: Sequence[str], batch: int, seconds: float) -> dict[str, float]:
    """Milliseconds of the lower quartile of each way's steps, the ways one after the other."""
    ways = {name: Way(name, batch) for name in names}
    for way in ways.values():
        for _ in range(4):  # buckets are rebuilt, kernels compiled
            way.step()
    times: dict[str, list[float]] = defaultdict(list)
    end, go = time.perf_counter() + seconds, torch.ones(1)
    while go:
        for name, way in ways.items():
            times[name].append(way.step())
        go = torch.tensor([float(time.perf_counter() < end)])
        dist.broadcast(go, 0)
    return {name: 1e3 * lower_quartile(each) for name, each in times.items()}


class Phases:
    """Seconds by phase, those of phases inside taken out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def watch(self, phase: str, owner: Any, name: str) -> None:
        """Time every call of a function from now on."""
        function: Callable[..., Any] | None = getattr(owner, name, None)
        if function is None:
            return

        def timed(*args: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[phase] += seconds - self._inside.pop()
                if self._inside:
                    self._inside[-1] += seconds

        setattr(owner, name, timed)


def phases_of(spec: str, batch: int, seconds: float) -> dict[str, float]:
    """Milliseconds of a step by phase, the mean over steps."""
    from gradstats.exchange import (
        averaging,
        collectives,
        comparing,
        driving,
        flights,
        layouts,
        parameter_states,
    )

    phases = Phases()
    way = Way(spec, batch)
    for _ in range(4):
        way.step()
    watched = [
        ("forward, backward, optimizer", way, "step"),
        ("the rest of the hook", CompressorState, "start"),
        ("read: check, copy", layouts.Layout, "read"),
        ("read: check, copy", averaging.Averaging, "fill"),
        ("memories", parameter_states.Memories, "take"),
        ("memories", parameter_states.Memories, "put"),
        ("encode", driving.Rounds, "advance"),
        ("encode indices, heads", collectives.Group, "header"),
        ("numbers of all workers", collectives.Group, "share"),
        ("numbers of all workers", flights.Flight, "begin"),
        ("numbers of all workers", flights.Flight, "read_numbers"),
        ("messages: write", collectives.Group, "_written"),
        ("messages: read", collectives.Group, "_read"),
        ("collectives", collectives.Group, "perform"),
        ("collectives", flights.Flight, "wait"),
        ("write: decode, add, check", layouts.Layout, "write"),
        ("write: decode, add, check", averaging.Averaging, "finish"),
        ("digest", comparing.Written, "add"),
    ]
    for phase, owner, name in watched:
        phases.watch(phase, owner, name)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps, end, go = 0, time.perf_counter() + seconds, torch.ones(1)
    while go:
        way.step()
        steps += 1
        go = torch.tensor([float(time.perf_counter() < end)])
        dist.broadcast(go, 0)
    phases.seconds["page faults, not ms"] = 1e-3 * (
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    )
    return {phase: 1e3 * total / steps for phase, total in phases.seconds.items()}


def work(rank: int, folder: str, options: argparse.Namespace) -> None:
    """Be one worker."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=options.workers
    )
    if options.phases:
        each = options.seconds / len(options.phases)
        found: Any = {spec: phases_of(spec, options.batch, each) for spec in options.phases}
    else:
        found = quartiles(options.ways, options.batch, options.seconds)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def measured(options: argparse.Namespace) -> Any:
    """What worker 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder, options), nprocs=options.workers)
        return json.loads(Path(folder, "found.json").read_text())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", default=[PLAIN, *TORCH, *SPECS])
    parser.add_argument("--phases", nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = measured(options)
    if options.phases:
        for spec, phases in found.items():
            print(spec)
            for phase, ms in phases.items():
                print(f"  {phase:30} {ms:7.2f}")
        return
    for name, ms in found.items():
        beside, asked = ASKED.get(name, (PLAIN, None))
        ratio = ms / found[beside] if beside in found else float("nan")
        print(
            f"{name:28} {ms:7.1f} ms  {ratio:5.2f} x {beside}"
            + (f", asked {asked}" if asked else "")
        )


if __name__ == "__main__":
    main()
