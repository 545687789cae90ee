"""Opening a captured run by its path, with a selection of its rows and parameters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from gradstats.runs.run import Run
from gradstats.settings import SettingError, naming
from gradstats.store import GradientStore


def open(
    path: str | os.PathLike[str],
    *,
    parameters: str | Sequence[str] = "*",
    steps: tuple[int | None, int | None, int] = (None, None, 1),
    worker: int = 0,
    point: str = "",
    device: str = "cpu",
) -> Run:
    """Open a captured run.

    Args:
        path: the path or URL of the store.
        parameters: name or glob of the parameters to look at, or several.
        steps: (start, stop, stride): rows with start <= step < stop, every stride-th of them.
        worker: number of the data-parallel worker whose rows are read.
        point: where in the step the gradients were captured: "local", "outer", "reduced" or
            "clipped"; default: the first of these that the run has.
        device: the device of the gradients that are read.

    Raises:
        StoreFormatError: not a readable store.
        SettingError: the selection matches nothing, or a value has the wrong type.
    """
    _check_steps(steps)
    _check_device(device)
    names = parameters if isinstance(parameters, str) else _names(parameters)
    return Run(GradientStore.open(path), names, steps, worker, point, device)


def opened(run: Run | str | os.PathLike[str], name: str = "run") -> Run:
    """Return an open run: the run itself, or the one at a path or URL.

    Args:
        run: a run, or the path or URL of its store.
        name: the name of the argument, for the error.

    Raises:
        SettingError: it is neither.
        StoreFormatError: there is no readable store at the path.
    """
    if isinstance(run, Run):
        return run
    if not isinstance(run, str | os.PathLike):
        raise SettingError(name, f"must be an open run or its path, got {run!r}")
    if name == "run":
        return open(run)
    with naming(name):
        return open(run)


def _names(parameters: Any) -> tuple[str, ...]:
    several = isinstance(parameters, Iterable) and not isinstance(parameters, Mapping)
    names = tuple(parameters) if several else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise SettingError("parameters", f"must be names or globs, got {parameters!r}")
    return names


def _check_steps(steps: Any) -> None:
    right = isinstance(steps, tuple | list) and len(steps) == 3
    if not right or not all(each is None or isinstance(each, int) for each in steps):
        raise SettingError("steps", f"must be (start, stop, stride), got {steps!r}")
    if steps[2] is not None and steps[2] < 1:
        raise SettingError("steps", f"must have a stride of at least 1, got {steps!r}")


def _check_device(device: Any) -> None:
    """Check that tensors can be made on a device.

    Raises:
        SettingError: they cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        fact = str(error).partition("\n")[0]
        raise SettingError("device", f"must be there, got {device!r}: {fact}") from error
