"""Is a training that is recorded the same training, are its rows its gradients, who waits?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from where import Checks, Where

import gradstats
from gradstats.store import GradientStore

STEPS, LIMIT = 6, 0.05
ROUNDS = 20  # rows that are timed
WARM = 2  # rows for which memory is made


def checks(where: Where) -> Checks:
    """Weights, rows, mixed precision, summaries, compiled models, who waits, what it costs."""
    yield "weights are the same to the bit", partial(same_weights, where)
    yield "rows are the gradients", partial(rows_are_gradients, where)
    for fused in (False, True):
        name = "fused" if fused else "not fused"
        yield f"GradScaler, {name}", partial(scaled_rows, where, fused)
    yield "local, reduced, clipped", partial(points, where)
    yield "Summaries", partial(summaries, where)
    yield "weights with whole rows", partial(with_weights, where)
    yield "torch.compile", partial(compiled, where)
    for step in ("off", "full"):
        yield f"no synchronisation, {step} step", partial(nobody_waits, where, step)
    yield "stall of a full row over a copy to the host", partial(stall, where)
    yield "cost of an off-step", partial(off_step, where)


def net(device: torch.device, width: int = 64) -> nn.Module:
    """Two linear layers, and an embedding's worth of parameters where it is wide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.Tanh(), nn.Linear(width, 8)).to(device)


def batch(device: torch.device, step: int) -> Tensor:
    """The same on every device."""
    return torch.randn(16, 32, generator=torch.Generator().manual_seed(step)).to(device)


def flat(model: nn.Module) -> Tensor:
    """The gradient as a full row holds it."""
    return torch.cat([p.grad.detach().reshape(-1) for p in model.parameters()]).cpu()


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, device: Any, step: int) -> Tensor:
    """The gradient that the optimizer was given."""
    optimizer.zero_grad()
    model(batch(device, step)).square().mean().backward()
    seen = flat(model)
    optimizer.step()
    return seen


@contextmanager
def recording(model: nn.Module, optimizer: Any, **settings: Any) -> Iterator[tuple[Any, Path]]:
    """A recording into a folder that goes afterwards; the store is whole once it is closed."""
    settings = {"full": gradstats.every(1), "track": None, "quiet": True} | settings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.zarr")
        cap = gradstats.capture(model, optimizer, path, **settings)
        try:
            yield cap, path
        finally:
            cap.close()


def same_weights(where: Where) -> dict[str, Any]:
    """With and without a recording."""
    ends = []
    for recorded in (True, False):
        model = net(where.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        around = recording(model, optimizer, track=100, at=["local", "reduced"])
        with around if recorded else nullcontext():
            for step in range(STEPS):
                one_step(model, optimizer, where.device, step)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    if not torch.equal(*ends):
        raise AssertionError(f"{int((ends[0] != ends[1]).sum())} weights differ")
    return {"steps": STEPS}


def rows_are_gradients(where: Where) -> dict[str, Any]:
    """Every element of every row."""
    model = net(where.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer, track=50) as (cap, path):
        seen = [one_step(model, optimizer, where.device, step) for step in range(STEPS)]
        cap.close()
        check_rows(path, seen, "reduced")
        tracked = GradientStore.open(path).stream(kind="track")
        ids = torch.from_numpy(tracked.element_ids["float32"])
        for row, grad in enumerate(seen):
            if not torch.equal(tracked.read(row), grad[ids]):
                raise AssertionError(f"tracked elements of step {row} differ")
        return {"rows": len(seen), "dropped": cap.stats.dropped}


def check_rows(path: Path, seen: list[Tensor], point: str, tolerance: float = 0.0) -> None:
    """Raise AssertionError unless the rows of a point are these, as they are stored."""
    run = gradstats.open(path, point=point)
    found = [run.stream().read(row) for row in run.rows()]
    if len(found) != len(seen):
        raise AssertionError(f"{len(found)} rows at {point} of {len(seen)} steps")
    for step, (row, grad) in enumerate(zip(found, seen, strict=True)):
        off = (row - grad).abs().max().item() / grad.abs().max().item()
        if not off <= tolerance:
            raise AssertionError(f"step {step} at {point}: {off:.1e} off")


def scaled_rows(where: Where, fused: bool) -> dict[str, Any]:
    """Under autocast: rows are what is in `.grad`, and say whether the loss scale is in it."""
    model, kind = net(where.device), where.device.type
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler(kind, init_scale=64.0, growth_interval=2)
    dtype = torch.float16 if where.on_gpu else torch.bfloat16
    scales, scaled = [], []
    with recording(model, optimizer, at=["local", "reduced"]) as (cap, path):
        for step in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast(kind, dtype):
                loss = model(batch(where.device, step)).float().square().mean()
            scales.append(scaler.get_scale())
            scaler.scale(loss).backward()
            scaled.append(flat(model))
            scaler.step(optimizer)
            scaler.update()
        cap.close()
        check_rows(path, scaled, "local")
        divided = [g / (1 if fused else s) for g, s in zip(scaled, scales, strict=True)]
        check_rows(path, divided, "reduced", 1e-6)
        facts = GradientStore.open(path).stream().coordinates
        if facts["loss_scale"][::2].tolist() != scales:
            raise AssertionError(f"loss scales are {facts['loss_scale'].tolist()}, not {scales}")
    return {"scales": scales}


def points(where: Where) -> dict[str, Any]:
    """The three points of one step; clipping in between."""
    model = net(where.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, after = [], []
    with recording(model, optimizer, at=["local", "reduced", "clipped"]) as (cap, path):
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(where.device, step)).square().mean().backward()
            before.append(flat(model))
            nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            after.append(flat(model))
            optimizer.step()
        cap.close()
        for point, seen in (("local", before), ("reduced", before), ("clipped", after)):
            check_rows(path, seen, point)
    return {}


def summaries(where: Where) -> dict[str, Any]:
    """Counts are those of the gradient on the CPU."""
    model = net(where.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording(model, optimizer, summary=True) as (cap, path):
        seen = [one_step(model, optimizer, where.device, step) for step in range(STEPS)]
        cap.close()
        run = gradstats.open(path)
        for row, grad in enumerate(seen):
            whole = gradstats.summarize(grad)
            stored = sum(summary.n for summary in run.summaries(row).values())
            largest = max(summary.max_abs for summary in run.summaries(row).values())
            if (stored, largest) != (whole.n, whole.max_abs):
                raise AssertionError(f"step {row}: {stored} elements up to {largest}")
    return {}


def with_weights(where: Where) -> dict[str, Any]:
    """They are those of the forward pass."""
    model = net(where.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = []
    with recording(model, optimizer, weights=True) as (cap, path):
        for step in range(STEPS):
            before.append(torch.cat([p.detach().reshape(-1).cpu() for p in model.parameters()]))
            one_step(model, optimizer, where.device, step)
        cap.close()
        stream = GradientStore.open(path).stream()
        for row, weights in enumerate(before):
            if not torch.equal(stream.read(row, quantity="weight"), weights):
                raise AssertionError(f"the weights of step {row} differ")
    return {}


def compiled(where: Where) -> dict[str, Any]:
    """A compiled model's rows are its gradients."""
    model = net(where.device)
    fast = torch.compile(model, backend="eager" if where.quick else "inductor")
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    with recording(fast, optimizer) as (cap, path):
        seen = [one_step(fast, optimizer, where.device, step) for step in range(STEPS)]
        cap.close()
        check_rows(path, seen, "reduced")
    return {}


def nobody_waits(where: Where, step: str) -> dict[str, Any]:
    """Torch raises where a call makes the host wait for the device."""
    where.needs_gpu()
    model = net(where.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spacing = 4
    with recording(model, optimizer, full=gradstats.every(spacing), track=100) as (_, _path):
        for number in range(4 * spacing):
            optimizer.zero_grad()
            model(batch(where.device, number)).square().mean().backward()
            watched = number >= 2 * spacing and (number % spacing == 0) == (step == "full")
            torch.cuda.set_sync_debug_mode("error" if watched else "default")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return {}


def large(where: Where) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose gradient is there already: 26 million elements on a GPU."""
    elements = 2_000_000 if where.quick or not where.on_gpu else 26_000_000
    model = nn.ParameterList([nn.Parameter(torch.ones(elements // 20)) for _ in range(20)])
    model.to(where.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def clock(where: Where, work: Any) -> float:
    """Seconds of one call, the device's part included."""
    where.finish()
    start = time.perf_counter()
    work()
    where.finish()
    return time.perf_counter() - start


def stall(where: Where) -> dict[str, Any]:
    """What a row adds to a step over a step without one, by a copy of the gradient to the host.

    Steps with a row, without one, and the copy take turns, and the next row waits for the writer,
    as it does in a training whose rows are further apart; asked on a GPU are at most 1.2.
    """
    model, optimizer = large(where)
    elements = sum(p.numel() for p in model.parameters())
    on_device = torch.empty(elements, device=where.device)
    host = torch.empty(elements, pin_memory=where.on_gpu)
    spacing, times = 3, [[] for _ in range(3)]
    with recording(model, optimizer, full=gradstats.every(spacing)) as (cap, _):
        for number in range(spacing * (4 if where.quick else ROUNDS)):
            if number % spacing == 2:
                wait_for_writer(where, cap, rows=number // spacing + 1)
                times[2].append(clock(where, lambda: host.copy_(on_device)))
            times[number % spacing and 1].append(clock(where, optimizer.step))
            if where.seconds < 5:
                break
    row, without, copy = (median(part[WARM:]) for part in times)
    ratio = (row - without) / copy
    return {"elements": elements, "row_ms": 1e3 * row, "copy_ms": 1e3 * copy, "ratio": ratio}


def wait_for_writer(where: Where, cap: Any, rows: int) -> None:
    """Until so many rows are on disk; nothing else is going on then."""
    while cap.stats.full_rows + cap.stats.dropped < rows and where.seconds > 0:
        time.sleep(0.001)


def off_step(where: Where) -> dict[str, Any]:
    """What a recording adds to a step that it doesn't look at; asked are less than 10 µs."""
    model, medians = net(where.device), {}
    for recorded in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        one_step(model, optimizer, where.device, 0)
        settings = {"full": gradstats.every(10**6)}
        with recording(model, optimizer, **settings) if recorded else nullcontext():
            optimizer.step()
            times = []
            for _ in range(100 if where.quick else 2_000):
                start = time.perf_counter()
                optimizer.step()
                times.append(time.perf_counter() - start)
        medians[recorded] = median(times)
    return {"off_step_us": 1e6 * (medians[True] - medians[False]), "step_us": 1e6 * medians[False]}
