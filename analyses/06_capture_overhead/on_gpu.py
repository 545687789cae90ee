"""The same on a CUDA device: stall next to the copy to the host, and who waits for the device.

Never run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import Training, clocked, flat_copy, resnet20, transformer
from torch.profiler import ProfilerActivity, profile, record_function

import gradstats

WARM, RANGE = 3, "gradstats capture"
WAITING = ("Synchronize", "cudaMemcpy", "cudaEventQuery")  # in a call's name: the host may wait
ASYNCHRONOUS = "cudaMemcpyAsync"


def measure(folder: Path, *, rows: int, width: int) -> dict[str, Any]:
    """By model: stall, copy, their ratio, and calls that wait; or that there is no GPU."""
    if not torch.cuda.is_available():
        return {"absent": "no CUDA device"}
    large = transformer(width, device="cuda")
    trainings = {"ResNet-20": resnet20(128, device="cuda"), "transformer": large}
    found: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for name, training in trainings.items():
        found[name] = {
            **_stall(training, folder / f"{name}.zarr", rows),
            "calls_that_wait": _waiting(training, folder, name),
        }
    return found


def _stall(training: Training, path: Path, rows: int) -> dict[str, float]:
    """What a row adds to a step, device included, next to a copy of the gradient to the host.

    A step without a row, one with a row, one without, one followed by the copy, and so on.
    """
    spacing = 4
    recording = gradstats.capture(
        training.model,
        training.optimizer,
        path,
        full=gradstats.every(spacing),
        track=None,
        quiet=True,
    )
    device = torch.empty(training.elements, device="cuda")
    host = torch.empty(training.elements, pin_memory=True)
    times: dict[int, list[float]] = {place: [] for place in range(spacing)}
    copies = []
    for step in range(spacing * (WARM + rows)):
        training.optimizer.zero_grad()
        training.backward()
        torch.cuda.synchronize()
        times[step % spacing].append(clocked(lambda: _finished(training.optimizer.step)))
        if step % spacing == 2:
            flat_copy(training.parameters, device)
            torch.cuda.synchronize()
            copies.append(clocked(lambda: _finished(lambda: host.copy_(device))))
    recording.close()
    without = median(times[3][WARM:])
    stall, copy = median(times[0][WARM:]) - without, median(copies[WARM:])
    return {"row_us": 1e6 * stall, "device_to_host_us": 1e6 * copy, "ratio": stall / copy}


def _finished(work: Any) -> None:
    work()
    torch.cuda.synchronize()


def _waiting(training: Training, folder: Path, name: str) -> list[str]:
    """Names of the calls inside of capture's hook that can make the host wait for the device."""
    begun: list[Any] = []
    training.optimizer.register_step_pre_hook(lambda *_: begun.append(_enter()))
    recording = gradstats.capture(
        training.model,
        training.optimizer,
        folder / f"{name} profiled.zarr",
        full=gradstats.every(2),
        track=65_536,
        quiet=True,
    )
    training.optimizer.register_step_pre_hook(lambda *_: begun.pop().__exit__(None, None, None))
    for _ in range(WARM):
        training.backward()
        training.optimizer.step()
    trace = folder / f"{name}.json"
    with _profiled(trace):
        for _ in range(4):
            training.backward()
            training.optimizer.step()
    recording.close()
    return waiting_calls(json.loads(trace.read_text())["traceEvents"])


def _enter() -> Any:
    inside = record_function(RANGE)
    inside.__enter__()
    return inside


@contextmanager
def _profiled(trace: Path) -> Iterator[None]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        yield
    profiler.export_chrome_trace(str(trace))


def waiting_calls(events: list[dict[str, Any]]) -> list[str]:
    """Calls of the CUDA runtime that wait, inside of capture's ranges and in their thread."""
    ranges = [
        (event["tid"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("name") == RANGE and event.get("cat") == "user_annotation"
    ]
    if not ranges:
        raise RuntimeError("cannot judge the profile: capture's range is not in it")
    return sorted(
        {
            event["name"]
            for event in events
            if event.get("cat") == "cuda_runtime"
            and any(part in event["name"] for part in WAITING)
            and event["name"] != ASYNCHRONOUS
            and any(tid == event["tid"] and a <= event["ts"] <= b for tid, a, b in ranges)
        }
    )
