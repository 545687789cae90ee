"""How long a recorded row holds the training thread, next to one flat copy of the gradient."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import Training, clocked, flat_copy, timed_hooks

import gradstats

WARM = 3  # rows that are not counted: they make the buffers
BLOCK = 8  # steps with a row each, then as many with a flat copy each


def spaced(training: Training, path: Path, *, rows: int, spacing: int) -> dict[str, Any]:
    """A row every `spacing` steps, in between a flat copy; the writer is idle again at each row.

    A row's stall is what its own step and the next one take, at which it is handed over.
    """
    at_row, at_copy = gradstats.every(spacing), spacing // 2
    recording, seconds = _attached(training, path, at_row)
    parameters, buffer = training.parameters, torch.zeros(training.elements)
    copies, idle = [], 0
    for step in range(spacing * (WARM + rows)):
        training.optimizer.zero_grad()
        loss = training.backward()
        if step % spacing == at_copy:
            copies.append(clocked(lambda: flat_copy(parameters, buffer)))
        if step % spacing == 0:
            idle += recording.stats.full_rows == step // spacing
        training.optimizer.step()
        recording.log(loss=loss)
    recording.close()
    stalls = [seconds[step] + seconds[step + 1] for step in range(0, len(seconds), spacing)]
    return {
        **_compared(stalls[WARM:], copies[WARM:]),
        "first_row_us": 1e6 * stalls[0],
        "rows": rows,
        "rows_at_which_the_writer_was_idle": max(0, idle - WARM),
    }


def every_step(training: Training, path: Path, *, blocks: int) -> dict[str, Any]:
    """Rows at all steps of a block, flat copies at all steps of the next."""
    recording, seconds = _attached(training, path, lambda step: step // BLOCK % 2 == 0)
    parameters, buffer = training.parameters, torch.zeros(training.elements)
    copies = []
    for step in range(2 * BLOCK * (1 + blocks)):
        training.optimizer.zero_grad()
        loss = training.backward()
        if step // BLOCK % 2:
            copies.append(clocked(lambda: flat_copy(parameters, buffer)))
        training.optimizer.step()
        recording.log(loss=loss)
    recording.close()
    stalls = [took for step, took in enumerate(seconds) if step // BLOCK % 2 == 0]
    return {**_compared(stalls[BLOCK:], copies[BLOCK:]), "rows": BLOCK * blocks}


def tracked(training: Training, path: Path, *, steps: int, track: int = 65_536) -> dict[str, Any]:
    """The hook on tracked steps, and the share of the whole step that it is."""
    recording, seconds = _attached(training, path, None, track=track)
    whole = []
    for _ in range(steps):
        started = time.perf_counter()
        training.optimizer.zero_grad()
        loss = training.backward()
        training.optimizer.step()
        recording.log(loss=loss)
        whole.append(time.perf_counter() - started)
    recording.close()
    hook, step = median(seconds[steps // 5 :]), median(whole[steps // 5 :])
    return {
        "elements": track,
        "hook_us": 1e6 * hook,
        "step_ms": 1e3 * step,
        "percent": 100 * hook / step,
    }


def _attached(
    training: Training, path: Path, full: Callable[[int], bool] | None, track: int | None = None
) -> tuple[Any, list[float]]:
    return timed_hooks(
        training.optimizer,
        lambda: gradstats.capture(
            training.model, training.optimizer, path, full=full, track=track, quiet=True
        ),
    )


def _compared(stalls: list[float], copies: list[float]) -> dict[str, float]:
    row, copy = median(stalls), median(copies)
    return {
        "row_us": 1e6 * row,
        "slowest_row_us": 1e6 * max(stalls),
        "flat_copy_us": 1e6 * copy,
        "ratio": row / copy,
    }
