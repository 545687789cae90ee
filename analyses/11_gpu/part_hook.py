"""Does the communication hook train on a GPU, with equal weights on all workers?"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.autograd import DeviceType
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from where import Checks, LeftOut, Where

from gradstats.ddp_hooks import CompressorState, compress_hook

SPECS = (
    "none",
    "ef(powersgd)",
    "ef(exact-threshold(0.01))",
    "qsgd-shared",
    "mxfp8",
    "twoshot(mxfp8)",
    "ef(twoshot(nvfp4))",
)
STEPS, QUICK_STEPS = 50, 3
TIMEOUT = 60.0  # of a collective, in seconds
LINES = 8  # operations of a profile


def checks(where: Where) -> Checks:
    """One launch for each number of workers; what it found of each method is a check."""
    ways = [("nccl", 1), ("gloo", 2)] if where.on_gpu else [("gloo", 1), ("gloo", 2)]
    ways = ways[-1:] if where.quick else ways
    for backend, workers in ways:
        launches: dict[str, Any] = {}
        for spec in SPECS:
            name = f"{workers} over {backend}: {spec}"
            yield name, partial(of_launch, where, launches, backend, workers, spec)


def of_launch(
    where: Where, launches: dict[str, Any], backend: str, workers: int, spec: str
) -> dict[str, Any]:
    """What the workers found of one method; they are launched when the first is asked for."""
    if not launches:
        launches["found"] = launch(where, backend, workers)
    found = [worker.get(spec) for worker in launches["found"]]
    if None in found:
        raise LeftOut("the workers ended before: see the checks above")
    errors = [each["error"] for each in found if "error" in each]
    if errors:
        raise RuntimeError(errors[0])
    if len({each["weights"] for each in found}) != 1:
        raise AssertionError("the weights of the workers differ")
    if not found[0]["losses"][-1] < found[0]["losses"][0]:
        raise AssertionError(
            f"the loss went from {found[0]['losses'][0]} to {found[0]['losses'][-1]}"
        )
    return {key: value for key, value in found[0].items() if key != "losses"}


def launch(where: Where, backend: str, workers: int) -> list[dict[str, Any]]:
    """What each worker wrote, whole or not."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        args = (workers, backend, str(where.device), where.quick, folder)
        running = [context.Process(target=work, args=(rank, *args)) for rank in range(workers)]
        for process in running:
            process.start()
        end = time.monotonic() + max(10.0, where.seconds)
        for process in running:
            process.join(max(0.1, end - time.monotonic()))
            process.kill()
        files = [Path(folder, f"{rank}.json") for rank in range(workers)]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def work(rank: int, workers: int, backend: str, device: str, quick: bool, folder: str) -> None:
    """One worker: writes after every method."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=TIMEOUT),
    )
    found: dict[str, Any] = {}
    for spec in SPECS:
        try:
            found[spec] = train(spec, torch.device(device), rank, QUICK_STEPS if quick else STEPS)
        except Exception as error:
            found[spec] = {"error": f"{type(error).__name__}: {error}"[:300]}
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that ends while a group is in use


def train(spec: str, device: torch.device, rank: int, steps: int) -> dict[str, Any]:
    """A regression on a teacher's answers; the last step under the profiler."""
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 16)).to(device)
    )
    state = CompressorState(None, spec, by="parameter")
    model.register_comm_hook(state, compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(rank)
    x = torch.randn(256, 256, generator=rng).to(device)
    y = torch.randn(256, 16, generator=torch.Generator().manual_seed(9)).to(device)

    def step() -> float:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    start = time.perf_counter()
    losses = [step() for _ in range(steps)]
    took = (time.perf_counter() - start) / steps
    spent = state.seconds
    found = {
        "step_ms": 1e3 * took,
        "encode_ms": 1e3 * spent.encode / steps,
        "communicate_ms": 1e3 * spent.communicate / steps,
        "decode_ms": 1e3 * spent.decode / steps,
        **profiled(step, device),
    }
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).cpu()
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    return {"losses": losses, "loss": losses[-1], "weights": digest, **found}


def profiled(step: Callable[[], float], device: torch.device) -> dict[str, Any]:
    """A step under the profiler: copies, waits, and what takes the most time of its own."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
    events = profiler.events()
    names = [event.name for event in events]
    waits = [event for event in events if "Synchronize" in event.name]
    sums = sorted(profiler.key_averages(), key=lambda each: -each.self_cpu_time_total)
    return {
        "to_host": sum("DtoH" in name for name in names),
        "from_host": sum("HtoD" in name for name in names),
        "items": names.count("aten::_local_scalar_dense"),
        "waits": len(waits),
        "waits_ms": sum(event.cpu_time_total for event in waits) / 1e3,
        "kernels": sum(event.device_type == DeviceType.CUDA for event in events),
        "most": {each.key: each.self_cpu_time_total / 1e3 for each in sums[:LINES]},
    }
