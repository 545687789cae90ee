"""The clock of these measurements: cases take turns, and a case's time is its lower quartile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

Work = Callable[[], Any]
Name = TypeVar("Name")
PAUSE = 0.006  # seconds after which the threads of torch no longer wait for work


def in_turns(
    cases: Mapping[Name, Work], rounds: int, *, pause: float = PAUSE, repeats: int = 1
) -> dict[Name, float]:
    """Seconds of each case: the lower quartile of so many turns, one round after the other.

    Args:
        cases: what is timed, by name; each is called once before.
        rounds: number of turns per case.
        pause: seconds of sleep before each turn.
        repeats: calls in a turn, of which the mean counts.
    """
    times: dict[Name, list[float]] = {name: [] for name in cases}
    for work in cases.values():
        work()
    for _ in range(rounds):
        for name, work in cases.items():
            time.sleep(pause)
            times[name].append(seconds(work, repeats))
    return {name: lower_quartile(each) for name, each in times.items()}


def seconds(work: Work, repeats: int = 1) -> float:
    """Time a call, or the mean of several."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def lower_quartile(values: list[float]) -> float:
    """Return the 25th percentile."""
    return float(np.quantile(values, 0.25))
