"""How much slower a whole training gets, beside other ways of looking at gradients.

One training of ResNet-20 goes on through blocks of steps. In each block one way of recording is
on; its time is compared with that of the block without any in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from timing import Training
from torch import Tensor

import gradstats

NOTHING, CAPTURE = "nothing", "gradstats: full=every(100), track=65_536"
WATCH, WATCH_OFF = "watch-style histograms, every step", "watch-style histograms, none due"
BOARD, SAVE = "TensorBoard histograms, every step", "torch.save, every step"
BETWEEN = 2  # steps between blocks that nothing is done in: the writer lingers for half a second


@dataclass
class Way:
    """One way of recording.

    Attributes:
        look: called between backward and step.
        around: what is on during a block.
        optimizer: to step with, if not the training's own.
        log: called with the loss after the step.
        steps: seconds of each step.
        blocks: seconds of each block, by round.
    """

    look: Callable[[], Any] = lambda: None
    around: Callable[[], Any] | None = None
    optimizer: torch.optim.Optimizer | None = None
    log: Callable[[Tensor], Any] = lambda loss: None
    steps: list[float] = field(default_factory=list)
    blocks: dict[int, float] = field(default_factory=dict)


def measure(training: Training, folder: Path, *, rounds: int, block: int) -> dict[str, Any]:
    """Slowdown by way; every third round has the ways of others, too."""
    twin = torch.optim.SGD(training.model.parameters(), lr=0.1)
    # the recording hangs on this one alone; parameters, momenta and settings are the same objects
    twin.state, twin.param_groups = training.optimizer.state, training.optimizer.param_groups
    recording = gradstats.capture(
        training.model,
        twin,
        folder / "whole.zarr",
        full=gradstats.every(100),
        track=65_536,
        quiet=True,
    )
    ways, absent = _ways(training, folder)
    ways[CAPTURE] = Way(optimizer=twin, log=lambda loss: recording.log(loss=loss))
    _run(training, Way(), steps=3)
    rows = 0
    for turn in range(rounds):
        own = [NOTHING, CAPTURE][:: 1 if turn % 2 else -1]
        others = [name for name in ways if name not in own and turn % 3 == 0]
        for name in [*own, *others]:
            _run(training, ways[name], steps=block, turn=turn)
            _run(training, Way(), steps=BETWEEN)
        rows = recording.stats.full_rows
    recording.close()
    shown = {name: _slowdown(way, ways[NOTHING]) for name, way in ways.items()}
    return {"block": block, "rounds": rounds, "full_rows": rows, "ways": shown, "absent": absent}


def _run(training: Training, way: Way, *, steps: int, turn: int | None = None) -> None:
    optimizer = way.optimizer or training.optimizer
    times = []
    with way.around() if way.around else _nothing():
        for _ in range(steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = training.backward()
            way.look()
            optimizer.step()
            way.log(loss)
            times.append(time.perf_counter() - started)
    if turn is not None:
        way.steps += times
        way.blocks[turn] = sum(times)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _slowdown(way: Way, nothing: Way) -> dict[str, Any]:
    """Of the time of all blocks, and of their steps' medians; percent."""
    ratios = sorted(took / nothing.blocks[turn] for turn, took in way.blocks.items())
    total = sum(way.blocks.values()) / sum(nothing.blocks[turn] for turn in way.blocks)
    quarter = len(ratios) // 4
    return {
        "steps": len(way.steps),
        "step_ms": 1e3 * median(way.steps),
        "mean_step_ms": 1e3 * mean(way.steps),
        "slowdown_total": 100 * (total - 1),
        "slowdown_blocks": [
            100 * (ratios[i] - 1) for i in (quarter, len(ratios) // 2, -1 - quarter)
        ],
        "slowdown_median_step": 100 * (median(way.steps) / median(nothing.steps) - 1),
    }


def at_frequency(ways: dict[str, Any], due: str, off: str, frequency: int) -> float:
    """Percent that histograms every so many steps come to, put together from medians."""
    steps = {name: ways[name]["step_ms"] for name in (NOTHING, due, off)}
    mixed = (steps[due] + (frequency - 1) * steps[off]) / frequency
    return 100 * (mixed / steps[NOTHING] - 1)


# --- the ways of others ---


def _ways(training: Training, folder: Path) -> tuple[dict[str, Way], dict[str, str]]:
    model = training.model
    ways = {
        NOTHING: Way(),
        WATCH_OFF: Way(around=lambda: _watched(model, frequency=10**9)),
        WATCH: Way(around=lambda: _watched(model, frequency=1)),
    }
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        absent = {BOARD: f"{error}; pip install tensorboard"}
    else:
        absent = {}
        ways[BOARD] = Way(look=_Board(SummaryWriter(str(folder / "board")), model))
    ways[SAVE] = Way(look=_Saver(folder, model))
    return ways, absent


@contextmanager
def _watched(model: torch.nn.Module, frequency: int) -> Iterator[dict[str, Any]]:
    """Hooks as wandb.watch(log="gradients") has them: a stand-in for it, which sends nothing."""
    histograms: dict[str, Any] = {}

    def hooked(name: str) -> Callable[[Tensor], None]:
        count = 0

        def hook(grad: Tensor) -> None:
            nonlocal count
            count += 1
            if count % frequency == 0:
                histograms[name] = histogram(grad)

        return hook

    hooks = [p.register_hook(hooked(name)) for name, p in model.named_parameters()]
    try:
        yield histograms
    finally:
        for hook in hooks:
            hook.remove()


def histogram(grad: Tensor, bins: int = 64) -> tuple[list[float], list[float]]:
    """Counts and edges of the finite elements between the smallest and the largest."""
    flat = grad.detach().reshape(-1)
    finite = torch.isfinite(flat)
    if not finite.all():
        flat = flat[finite]
    low, high = flat.min().item(), flat.max().item()
    counts = flat.histc(bins=bins, min=low, max=high).cpu()
    return counts.tolist(), torch.linspace(low, high, bins + 1).tolist()


class _Board:
    """A histogram of each parameter's gradient with TensorBoard's own writer."""

    def __init__(self, writer: Any, model: torch.nn.Module) -> None:
        self.writer, self.model, self.step = writer, model, 0

    def __call__(self) -> None:
        for name, parameter in self.model.named_parameters():
            self.writer.add_histogram(name, parameter.grad, self.step)
        self.step += 1


class _Saver:
    """All gradients in a file a step."""

    def __init__(self, folder: Path, model: torch.nn.Module) -> None:
        self.folder, self.model, self.step = folder, model, 0

    def __call__(self) -> None:
        grads = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        torch.save(grads, self.folder / f"{self.step}.pt")
        self.step += 1
