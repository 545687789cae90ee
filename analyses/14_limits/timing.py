"""The clock of these measurements: cases take turns, and a case's time is its lower quartile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Work = Callable[[], Any]
PAUSE = 0.006  # seconds after which the threads of torch no longer wait for work


def in_turns(cases: Mapping[str, Work], rounds: int, pause: float = PAUSE) -> dict[str, float]:
    """Seconds of each case: the lower quartile of so many calls, one round after the other.

    Args:
        cases: what is timed, by name; each is called once before.
        rounds: number of calls per case.
        pause: seconds of sleep before each call.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for work in cases.values():
        work()
    for _ in range(rounds):
        for name, work in cases.items():
            time.sleep(pause)
            times[name].append(seconds(work))
    return {name: lower_quartile(each) for name, each in times.items()}


def seconds(work: Work) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def lower_quartile(values: list[float]) -> float:
    """Return the 25th percentile."""
    return float(np.quantile(values, 0.25))
