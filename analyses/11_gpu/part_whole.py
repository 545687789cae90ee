"""Capture, fit, replay and report of one small training on the device."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from where import Checks, LeftOut, Where

ROOT = Path(__file__).parents[2]
STEPS, QUICK_STEPS = 60, 8


def checks(where: Where) -> Checks:
    """One run, then what the commands make of it."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "run.zarr")
    yield "a language model is trained and captured", partial(captured, where, path, folder)
    command = ["replay", str(path), "--compressors", "exact-threshold,sidco-e,qsgd"]
    command += ["--ratios", "0.01", "--granularity", "model", "--device", where.device.type]
    yield "gradstats replay", partial(run, where, path, command)
    command = ["report", str(path), "--device", where.device.type]
    few = [
        "--budget",
        "2s",
        "--ratios",
        "0.01",
        "--group-by",
        "model",
        "--compressors",
        "none,topk",
        "--families",
        "laplace",
    ]
    command += few if where.quick else ["--budget", "20s"]
    yield "gradstats report", partial(reported, where, path, command)


def captured(where: Where, path: Path, _folder: Any) -> dict[str, Any]:
    """The demo's model, on its text."""
    import gradstats
    from gradstats.cli.demo import ByteModel, corpus

    text, steps = corpus(), QUICK_STEPS if where.quick else STEPS
    torch.manual_seed(0)
    size = {"width": 16, "layers": 1} if where.quick else {}
    model = ByteModel(**size).to(where.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches, losses = torch.Generator().manual_seed(0), []
    full = gradstats.every(max(1, steps // 4))
    with gradstats.capture(model, optimizer, path, full=full, track=2_000, quiet=True) as cap:
        for _ in range(steps):
            starts = torch.randint(len(text) - model.context, (8,), generator=batches)
            rows = [text[start : start + model.context + 1] for start in starts]
            loss = model(torch.stack(rows).long().to(where.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    return {"steps": steps, "full_rows": cap.stats.full_rows, "dropped": cap.stats.dropped}


def run(where: Where, path: Path, command: list[str]) -> dict[str, Any]:
    """A command of gradstats in a process of its own; its last line is what failed."""
    if not path.exists():
        raise LeftOut("there is no run: see the check above")
    for package in ("pandas", "seaborn", "pyarrow", "jinja2"):
        __import__(package)
    path_of = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path_of)}
    ran = subprocess.run(
        [sys.executable, "-m", "gradstats.cli", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path.parent,
        timeout=max(10.0, where.seconds),
    )
    if ran.returncode:
        print(ran.stderr[-6_000:], flush=True)
        last = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
        raise RuntimeError(f"exit code {ran.returncode}: {' '.join(last)}")
    return {}


def reported(where: Where, path: Path, command: list[str]) -> dict[str, Any]:
    """The page says on which device it was timed."""
    run(where, path, command)
    page = (path.with_suffix(".results") / "report.html").read_text(encoding="utf-8")
    name = torch.cuda.get_device_name(where.device) if where.on_gpu else "cpu"
    if name.lower() not in page.lower():
        raise AssertionError(f"the page does not name {name}")
    return {"kilobytes": len(page) // 1024}
