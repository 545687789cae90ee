"""Open a run and cut work into tasks: the only place where tasks open a store."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats import extras
from gradstats.compressors import MIN_NUMEL, Part
from gradstats.families import FAMILIES, Family, family
from gradstats.fitting import RATIOS, STAGES, fit_rows, threshold_rows
from gradstats.store import GradientStore, Stream
from gradstats.summary import Summary, summarize

Progress = Callable[[int, int], None]  # done, of how many
GROUPINGS = ("model", "module-type", "parameter")
KINDS = ("full", "track")


@dataclass(frozen=True)
class Run:
    """A captured run, opened for reading.

    Attributes:
        store: where it is.
        parameters: glob of the parameters to look at.
        steps: (start, stop, stride): rows with start <= step < stop, every stride-th of them.
        worker: data-parallel worker.
        device: where gradients are put when they are read.
    """

    store: GradientStore
    parameters: str = "*"
    steps: tuple[int | None, int | None, int] = (None, None, 1)
    worker: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.names:
            known = [parameter.name for parameter in self.store.parameters]
            shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
            raise ValueError(f"parameters must match one of {shown}, got {self.parameters!r}")
        if self.worker not in self.store.workers:
            there = ", ".join(map(str, self.store.workers)) or "none that has written yet"
            raise ValueError(f"worker must be one of {there}, got {self.worker!r}")
        steps = [int(step) for kind in KINDS for step in self.stream(kind).steps]
        if steps and not any(self.rows(kind) for kind in KINDS):
            asked = ":".join("" if each is None else str(each) for each in self.steps)
            rule = f"steps must select a row, they run from {min(steps)} to {max(steps)}"
            raise ValueError(f"{rule}, got {asked}")

    def __repr__(self) -> str:
        rows = " + ".join(f"{len(self.stream(kind))} {kind} rows" for kind in KINDS)
        return f"Run({str(self.store.path)!r}, {rows}, {len(self.names)} parameters)"

    @property
    def names(self) -> tuple[str, ...]:
        """The selected parameters, in the order of the store."""
        every = (parameter.name for parameter in self.store.parameters)
        return tuple(name for name in every if fnmatch.fnmatchcase(name, self.parameters))

    def stream(self, kind: str = "full") -> Stream:
        """The rows of one kind, "full" or "track", selected or not."""
        try:
            return self.store.stream(self.worker, kind)
        except LookupError:  # nothing is tracked: a track without rows
            return Stream(self.store.path, self.worker, kind, self.store.parameters, {})

    @property
    def kind(self) -> str:
        """The rows to look at one by one: "full", or "track" where no full row is selected.

        Raises:
            ValueError: there is no row.
        """
        for kind in KINDS:
            if self.rows(kind):
                return kind
        raise ValueError(f"run must have a row, got none in {self}")

    def rows(self, kind: str = "full") -> list[int]:
        """Indices of the selected rows."""
        start, stop, stride = self.steps
        steps = self.stream(kind).steps
        inside = np.ones(len(steps), bool)
        if start is not None:
            inside &= steps >= start
        if stop is not None:
            inside &= steps < stop
        inside &= last_told(steps, self.stream(kind).coordinates["segment"])
        return [int(row) for row in np.flatnonzero(inside)[::stride]]

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return {kind: self.stream(kind) for kind in KINDS}

    @cached_property
    def _kept(self) -> dict[str, Tensor | None]:
        return {kind: self._elements(stream) for kind, stream in self._streams.items()}

    def read(self, step: int, parameter: str | None = None, *, kind: str = "full") -> Tensor:
        """The gradient of one step: flat, or of one parameter in its shape.

        Raises:
            ValueError: no row of that step, or no such parameter.
        """
        stream = self.stream(kind)
        rows = [row for row in self.rows(kind) if stream.steps[row] == step]
        if not rows:
            near = sorted(stream.steps, key=lambda other: abs(int(other) - step))[:3]
            shown = ", ".join(str(other) for other in sorted(near)) or "none"
            raise ValueError(f"step must have a {kind} row, the nearest are {shown}, got {step}")
        return stream.read(rows[-1], parameter).to(self.device)

    def gradients(self, kind: str = "full") -> Iterator[tuple[int, Tensor]]:
        """(step, flat gradient of the selected parameters) of the selected rows, in order."""
        for row in self.rows(kind):
            yield self.gradient(row, kind)

    def gradient(self, row: int, kind: str = "full") -> tuple[int, Tensor]:
        """(step, flat gradient of the selected parameters) of one row."""
        stream = self._streams[kind]
        keep = self._kept[kind]
        grad = stream.read(row).to(self.device)
        return int(stream.steps[row]), grad if keep is None else grad[keep]

    def parts(self, kind: str = "full") -> tuple[Part, ...]:
        """The selected parameters as parts of what `gradients` yields.

        Small ones (fewer than 1,024 elements in the model) are dense, here as in the DDP hook.
        """
        whole = {parameter.name: parameter.numel for parameter in self.store.parameters}
        return tuple(
            Part(parameter.name, parameter.numel, dense=whole[parameter.name] < MIN_NUMEL)
            for parameter in self.stream(kind).parameters
            if parameter.name in self.names
        )

    def _elements(self, stream: Stream) -> Tensor | None:
        if len(self.names) == len(stream.parameters):
            return None
        selected = [parameter.name in self.names for parameter in stream.parameters]
        numels = [parameter.numel for parameter in stream.parameters]
        mask = np.repeat(selected, numels)
        return torch.from_numpy(np.flatnonzero(mask)).to(self.device)


def last_told(steps: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows belong to the training as it went in the end, `[rows]`.

    A restart from a checkpoint repeats steps: rows of an earlier segment from the first step of a
    later one on were undone.

    Example:
        >>> last_told(np.array([0, 1, 2, 1, 2]), np.array([0, 0, 0, 1, 1])).tolist()
        [True, False, False, True, True]
    """
    kept = np.zeros(len(steps), bool)
    limit = np.iinfo(np.int64).max
    for segment in np.unique(segments)[::-1]:
        here = segments == segment
        kept |= here & (steps < limit)
        limit = min(limit, steps[here].min())
    return kept


def open(path: str | Path, **selection: Any) -> Run:
    """Open a captured run.

    Args:
        path: of the store.
        **selection: fields of `Run`: parameters, steps, worker, device.

    Raises:
        StoreFormatError: not a readable store.
        ValueError: the selection matches nothing.
    """
    return Run(GradientStore.open(path), **selection)


@dataclass(frozen=True)
class Group:
    """The summary of one group of parameters at one step.

    Attributes:
        step: optimizer step.
        name: "model", a module type or a parameter.
        summary: of its elements.
    """

    step: int
    name: str
    summary: Summary


def groups(
    run: Run,
    *,
    by: str = "model",
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Group]:
    """Summaries of the selected full rows (of tracked rows where there is none), in order.

    Args:
        run: selects parameters and steps.
        by: "model", "module-type" or "parameter".
        executor: where the tasks run, one a row; each opens the store itself and returns
            Summaries. Default: here.
        progress: called with (rows done, rows).

    Raises:
        ValueError: unknown grouping, or nothing to summarise.
    """
    if by not in GROUPINGS:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    kind = run.kind
    rows = run.rows(kind)
    task = partial(_summarize_row, run, kind, by)
    found: list[Group] = []
    for done, row_groups in enumerate((executor.map if executor else map)(task, rows), 1):
        found += row_groups
        if progress:
            progress(done, len(rows))
    if not found:
        names = ", ".join(run.names)
        raise ValueError(f"cannot summarise {names}: no gradient in {len(rows)} {kind} rows")
    return found


def _summarize_row(run: Run, kind: str, by: str, row: int) -> list[Group]:
    stream, names = run.stream(kind), run.names
    present = stream.present[row]
    kinds = {parameter.dtype for parameter in stream.parameters if parameter.name in names}
    found: dict[str, Summary] = {}
    for index, parameter in enumerate(stream.parameters):
        if parameter.name not in names or not present[index] or not parameter.numel:
            continue
        grad = stream.read(row, parameter.name).to(run.device)
        if by != "parameter" and len(kinds) > 1:
            grad = grad.float()  # summaries of one grid add
        summary = summarize(grad, fraction=stream.sampling_fraction)
        group = {"model": "model", "module-type": parameter.module_type}.get(by, parameter.name)
        found[group] = found[group] + summary if group in found else summary
    step = int(stream.steps[row])
    return [Group(step, name, summary) for name, summary in found.items()]


def fit(
    run: Run,
    *,
    by: str = "model",
    families: Iterable[str | type[Family]] = FAMILIES,
    ratios: Sequence[float] = RATIOS,
    method: str = "mle",
    executor: Executor | None = None,
) -> Any:
    """Fit families to every selected row: one line a step, group, family and ratio.

    Args:
        run: an open run.
        by: "model", "module-type" or "parameter".
        families: names or classes.
        ratios: target ratios, each in (0, 1].
        method: "mle" or "moments".
        executor: any `concurrent.futures.Executor`.

    Returns:
        A pandas DataFrame with the columns of `gradstats.fitting.fit_rows`, step and group.
    """
    chosen = [family(each) if isinstance(each, str) else each for each in families]
    found = groups(run, by=by, executor=executor)
    return fit_table(found, families=chosen, ratios=ratios, method=method)


def fit_table(found: Sequence[Group], *, progress: Progress | None = None, **settings: Any) -> Any:
    """The table of `fit` from groups that are there; settings are those of `fit_rows`."""
    return _table(found, partial(fit_rows, **settings), progress)


def threshold_table(
    found: Sequence[Group], *, ratios: Sequence[float] = RATIOS, stages: Sequence[int] = STAGES
) -> Any:
    """SIDCo's thresholds: one line a step, group, variant, number of stages and ratio."""
    return _table(found, partial(threshold_rows, ratios=ratios, stages=stages))


def _table(
    found: Sequence[Group],
    rows: Callable[[Summary], Iterable[dict[str, Any]]],
    progress: Progress | None = None,
) -> Any:
    lines: list[dict[str, Any]] = []
    for done, group in enumerate(found, 1):
        lines += [{"step": group.step, "group": group.name, **row} for row in rows(group.summary)]
        if progress:
            progress(done, len(found))
    return extras.load("pandas").DataFrame(lines)
