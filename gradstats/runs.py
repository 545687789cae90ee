"""Open a run: a store, and the parameters, steps and worker of it to look at."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.compressors import MIN_NUMEL, Part
from gradstats.store import GradientStore, Stream
from gradstats.summary import Summary
from gradstats.summary_bytes import from_bytes

Progress = Callable[[int, int], None]  # done, of how many
KINDS = ("full", "track")  # of rows that are gradients
FITTED = ("full", "summary", "track")  # of rows that laws can be fitted to, best first
PREFERRED = ("local", "outer", "reduced", "clipped", "unknown")
OWN = ("local", "outer", "unknown")  # each worker has its own; the others are of all workers
CONSECUTIVE = 0.99  # of the steps must follow the one before


@dataclass(frozen=True)
class Run:
    """A captured run, opened for reading.

    Attributes:
        store: where it is.
        parameters: glob of the parameters to look at.
        steps: (start, stop, stride): rows with start <= step < stop, every stride-th of them.
        worker: data-parallel worker.
        point: where in the step the gradients were taken; "" for local ones where there are any,
            since those are what a compressor gets, else outer, else reduced, else clipped.
        device: where gradients are put when they are read.
    """

    store: GradientStore
    parameters: str = "*"
    steps: tuple[int | None, int | None, int] = (None, None, 1)
    worker: int = 0
    point: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.names:
            known = [parameter.name for parameter in self.store.parameters]
            shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
            raise ValueError(f"parameters must match one of {shown}, got {self.parameters!r}")
        if self.worker not in self.store.workers:
            there = ", ".join(map(str, self.store.workers)) or "none that has written yet"
            raise ValueError(f"worker must be one of {there}, got {self.worker!r}")
        points = self.points
        if self.point and points and self.point not in points:
            raise ValueError(f"point must be one of {', '.join(points)}, got {self.point!r}")
        steps = [int(step) for kind in FITTED for step in self.stream(kind).steps]
        if steps and not any(self.rows(kind) for kind in FITTED):
            asked = ":".join("" if each is None else str(each) for each in self.steps)
            rule = f"steps must select a row, they run from {min(steps)} to {max(steps)}"
            raise ValueError(f"{rule}, got {asked}")

    def __getstate__(self) -> dict[str, Any]:
        # tasks elsewhere open the streams themselves, and get no copy of what was read here
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        lengths = {kind: len(self.stream(kind)) for kind in (*KINDS, "summary")}
        rows = " + ".join(f"{n} {kind} rows" for kind, n in lengths.items() if n or kind in KINDS)
        return f"Run({str(self.store.path)!r}, {rows}, {len(self.names)} parameters)"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The selected parameters, in the order of the store."""
        every = (parameter.name for parameter in self.store.parameters)
        return tuple(name for name in every if fnmatch.fnmatchcase(name, self.parameters))

    @cached_property
    def selected(self) -> frozenset[str]:
        """The same names, to look one up: a model may have 10,000."""
        return frozenset(self.names)

    def stream(self, kind: str = "full") -> Stream:
        """The rows of one kind that there were when it was first asked for, selected or not."""
        if kind not in self._streams:
            self._streams[kind] = self._opened(kind)
        return self._streams[kind]

    def _opened(self, kind: str) -> Stream:
        try:
            return self.store.stream(self.worker, kind)
        except LookupError:  # nothing is tracked: a track without rows
            return Stream(self.store.path, self.worker, kind, self.store.parameters, {})

    @cached_property
    def points(self) -> tuple[str, ...]:
        """The points of the step at which there are rows."""
        found = {str(each) for kind in FITTED for each in self.stream(kind).coordinates["point"]}
        return tuple(point for point in PREFERRED if point in found)

    @property
    def kind(self) -> str:
        """The rows to look at one by one: "full", or "track" where no full row is selected.

        Raises:
            ValueError: there is no row.
        """
        for kind in KINDS:
            if self.rows(kind):
                return kind
        if self.rows("summary"):
            remedy = "fit works on those; capture with full= or track= for the rest"
            raise ValueError(f"run must hold gradients, got only Summaries in {self}; {remedy}")
        raise ValueError(f"run must have a row, got none in {self}")

    @property
    def fitted_kind(self) -> str:
        """The rows to fit laws to: whole gradients, else Summaries, else tracked elements.

        Raises:
            ValueError: there is no row.
        """
        return next((kind for kind in FITTED if self.rows(kind)), None) or self.kind

    @property
    def consecutive(self) -> str:
        """The rows that a memory can run on: those whose steps follow each other.

        Raises:
            ValueError: neither tracked nor full rows do.
        """
        for kind in ("track", "full"):
            steps = self.stream(kind).steps[self.rows(kind)]
            if len(steps) > 1 and (np.diff(steps) == 1).mean() > CONSECUTIVE:
                return kind
        gaps = "have gaps" if self.rows("track") else "are not there: capture with track="
        raise ValueError(f"a method with memory needs consecutive steps; tracked rows {gaps}")

    def rows(self, kind: str = "full") -> list[int]:
        """Indices of the selected rows, of one point; not those of steps that a scaler skipped."""
        start, stop, stride = self.steps
        coordinates = self.stream(kind).coordinates
        steps = coordinates["step"]
        point = self.point or (self.points or ("unknown",))[0]
        inside = (coordinates["point"] == point) & (coordinates["skipped"] != 1)
        if start is not None:
            inside &= steps >= start
        if stop is not None:
            inside &= steps < stop
        inside &= last_told(steps, coordinates["segment"], self._begins)
        return [int(row) for row in np.flatnonzero(inside)[::stride]]

    @cached_property
    def _begins(self) -> dict[int, int]:
        """The first step of each segment, by rows of any kind."""
        found: dict[int, int] = {}
        for kind in FITTED:
            coordinates = self.stream(kind).coordinates
            for segment, step in zip(coordinates["segment"], coordinates["step"], strict=True):
                found[int(segment)] = min(int(step), found.get(int(segment), int(step)))
        return found

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return {}

    @cached_property
    def _kept(self) -> dict[str, Tensor | None]:
        return {kind: self._elements(self.stream(kind)) for kind in KINDS}

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

    def beside(self, workers: int) -> tuple[Run, ...]:
        """The first workers' rows of the same selection; itself for one.

        Raises:
            ValueError: fewer were captured, or their gradients are those after a reduction.
        """
        if workers == 1:
            return (self,)
        there = self.store.workers
        if not 1 < workers <= len(there):
            remedy = "gradstats import --workers makes some of micro-batches"
            rule = f"workers must be from 1 to {len(there)}, those captured, got {workers!r}"
            raise ValueError(f"{rule}; {remedy}")
        found = tuple(replace(self, worker=worker) for worker in there[:workers])
        points = {run.point or (run.points or ("unknown",))[0] for run in found}
        if points - set(OWN):
            fact = f"got the point {', '.join(sorted(points))}"
            raise ValueError(f"gradients of several workers must be local ones, {fact}")
        return found

    def together(self, workers: int, kind: str = "full") -> Iterator[tuple[int, list[Tensor]]]:
        """(step, flat gradient of each worker) of the selected steps that all of them have.

        Raises:
            ValueError: as `beside`, or they track other elements.
        """
        runs = self.beside(workers)
        ids = [run.stream(kind).element_ids or {} for run in runs]
        if any(other.keys() != ids[0].keys() for other in ids) or any(
            not np.array_equal(other[dtype], ids[0][dtype]) for other in ids for dtype in other
        ):
            raise ValueError("workers must track the same elements, got different ones")
        rows = [{int(run.stream(kind).steps[row]): row for row in run.rows(kind)} for run in runs]
        for step in sorted(set(rows[0]).intersection(*rows[1:])):
            pairs = zip(runs, rows, strict=True)
            yield step, [run.gradient(of[step], kind)[1] for run, of in pairs]

    def gradient(self, row: int, kind: str = "full") -> tuple[int, Tensor]:
        """(step, flat gradient of the selected parameters) of one row."""
        stream = self.stream(kind)
        keep = self._kept[kind]
        grad = stream.read(row).to(self.device)
        return int(stream.steps[row]), grad if keep is None else grad[keep]

    def parts(self, kind: str = "full") -> tuple[Part, ...]:
        """The selected parameters as parts of what `gradients` yields.

        Small ones (fewer than 1,024 elements in the model) are dense, here as in the DDP hook.
        """
        whole = {parameter.name: parameter.numel for parameter in self.store.parameters}
        return tuple(
            Part(
                parameter.name,
                parameter.numel,
                dense=whole[parameter.name] < MIN_NUMEL,
                shape=parameter.shape if kind == "full" else (),
            )
            for parameter in self.stream(kind).parameters
            if parameter.name in self.selected
        )

    def summaries(self, row: int) -> dict[str, Summary]:
        """By name, the Summaries of one row of kind "summary": of parameters with a gradient."""
        stream = self.stream("summary")
        names = [
            p.name for p, there in zip(stream.table, stream.present[row], strict=True) if there
        ]
        found = zip(names, from_bytes(stream.read_bytes(row)), strict=True)
        return {name: summary for name, summary in found if name in self.selected}

    def shadow_rows(self) -> list[dict[str, Any]]:
        """What compressors did that ran beside the training, one row a step and compressor.

        Columns are those of a replay: compressor, step, error, bits, residual_ratio, status …
        """
        stream = self.stream("shadow")
        steps = stream.coordinates["step"]
        found = []
        for row in self.rows("shadow"):
            for line in json.loads(stream.read_bytes(row)):
                found.append({**line, "step": int(steps[row])})
        return found

    def _elements(self, stream: Stream) -> Tensor | None:
        if len(self.names) == len(stream.parameters):
            return None
        selected = [parameter.name in self.selected for parameter in stream.parameters]
        numels = [parameter.numel for parameter in stream.parameters]
        mask = np.repeat(selected, numels)
        return torch.from_numpy(np.flatnonzero(mask)).to(self.device)


def last_told(
    steps: NDArray[np.int64],
    segments: NDArray[np.int64],
    begins: Mapping[int, int] | None = None,
) -> NDArray[np.bool_]:
    """Which rows belong to the training as it went in the end, `[rows]`.

    A restart from a checkpoint repeats steps: rows of an earlier segment from the first step of a
    later one on were undone.

    Args:
        steps: of the rows.
        segments: of the rows.
        begins: the first step of each segment, where other rows than these tell it too.

    Example:
        >>> last_told(np.array([0, 1, 2, 1, 2]), np.array([0, 0, 0, 1, 1])).tolist()
        [True, False, False, True, True]
        >>> last_told(np.array([0, 10]), np.array([0, 0]), {0: 0, 1: 4}).tolist()
        [True, False]
    """
    firsts = {int(each): int(steps[segments == each].min()) for each in np.unique(segments)}
    firsts |= begins or {}
    kept = np.zeros(len(steps), bool)
    limit = np.iinfo(np.int64).max
    for segment in sorted(firsts, reverse=True):
        kept |= (segments == segment) & (steps < limit)
        limit = min(limit, firsts[segment])
    return kept


def open(path: str | Path, **selection: Any) -> Run:
    """Open a captured run.

    Args:
        path: of the store.
        **selection: fields of `Run`: parameters, steps, worker, point, device.

    Raises:
        StoreFormatError: not a readable store.
        ValueError: the selection matches nothing.
    """
    return Run(GradientStore.open(path), **selection)
