"""What a step costs that is not recorded: two equal trainings, one of them with a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from timing import Training, clocked, small, standard_error, timed_hooks

import gradstats

NEVER = gradstats.every(10**9)


def measure(folder: Path, pairs: int) -> dict[str, Any]:
    """Microseconds a step, by setting.

    "hook" is what passes in the optimizer's hook alone; "added" all that backward and step take
    longer, in pairs of steps one of which is recorded, and changes sides from pair to pair.
    """
    cases = {
        "reduced, 2 parameters": (1, "reduced", None),
        "reduced, 150 parameters": (75, "reduced", None),
        "local, 150 parameters": (75, "local", None),
        "local, 150 parameters, a tracked row at every step": (75, "local", 65_536),
    }
    return {
        name: _case(folder / str(number), *settings, pairs)
        for number, (name, settings) in enumerate(cases.items())
    }


def _case(folder: Path, layers: int, at: str, track: int | None, pairs: int) -> dict[str, float]:
    plain, recorded = small(layers), small(layers)

    def attach() -> Any:
        path = folder / "off.zarr"
        return gradstats.capture(
            recorded.model,
            recorded.optimizer,
            path,
            full=NEVER,
            track=track,
            at=at,
            start_step=1,
            quiet=True,
        )

    recording, hook = timed_hooks(recorded.optimizer, attach)
    differences = []
    for pair in range(pairs):
        first, second = (plain, recorded) if pair % 2 else (recorded, plain)
        took = {id(first): _step(first), id(second): _step(second)}
        differences.append(took[id(recorded)] - took[id(plain)])
    recording.close()
    counted = differences[pairs // 10 :]
    return {
        "added": 1e6 * median(counted),
        "standard error": 1e6 * standard_error(counted),
        "hook": 1e6 * median(hook[pairs // 10 :]),
    }


def _step(training: Training) -> float:
    loss = training.loss()
    training.optimizer.zero_grad()
    work: Callable[[], Any] = lambda: (loss.backward(), training.optimizer.step())  # noqa: E731
    return clocked(work)
