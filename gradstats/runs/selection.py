"""What is selected of a run: parameters, steps, worker and point, and the rows that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradstats.patterns import matching
from gradstats.runs.emptiness import check_gradients, check_rows
from gradstats.runs.reading import SHOWN, Reader, last_told
from gradstats.settings import SettingError
from gradstats.store import GradientStore, Parameter, Stream

KINDS = ("full", "track")  # of rows that are gradients
FITTED = ("full", "summary", "track")  # of rows that distributions can be fitted to, best first
PREFERRED = ("local", "outer", "reduced", "clipped", "unknown")
OWN = ("local", "outer", "unknown")  # each worker has its own; the others are of all workers
CONSECUTIVE = 0.99  # of the steps must follow the one before


@dataclass(frozen=True)
class Selection:
    """The selected rows of one worker, of every kind; see `Run` for the fields."""

    store: GradientStore
    parameters: str | tuple[str, ...] = "*"
    steps: tuple[int | None, int | None, int] = (None, None, 1)
    worker: int = 0
    point: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.store.workers:
            check_rows(self.store)
        if self.worker not in self.store.workers:
            workers = ", ".join(map(str, self.store.workers))
            raise SettingError("worker", f"must be one of {workers}, got {self.worker!r}")
        if not self.names:
            known = [parameter.name for parameter in self.table]
            shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
            rule = f"must match one of {shown}"
            raise SettingError("parameters", f"{rule}, got {self.parameters!r}")
        points = self.points
        if self.point and points and self.point not in points:
            rule = f"must be one of {', '.join(points)}"
            raise SettingError("point", f"{rule}, got {self.point!r}")
        steps = [int(step) for kind in FITTED for step in self.stream(kind).steps]
        if steps and not any(self.rows(kind) for kind in FITTED):
            asked = ":".join("" if each is None else str(each) for each in self.steps)
            rule = f"must select a row, they run from {min(steps)} to {max(steps)}"
            raise SettingError("steps", f"{rule}, got {asked}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The selected parameters, in the order of the worker's rows."""
        every = [name for p in self.table for name in (p.name, *p.aliases)]
        patterns = (self.parameters,) if isinstance(self.parameters, str) else self.parameters
        chosen = frozenset[str]().union(*(matching(every, pattern) for pattern in patterns))
        return tuple(p.name for p in self.table if chosen & {p.name, *p.aliases})

    @property
    def table(self) -> tuple[Parameter, ...]:
        """The parameters of the worker's rows: another worker may hold another part of a model."""
        return self.stream("full").table

    @cached_property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The workers, grouped by equal parameter tables (pipeline stages).

        Worker 0's group first.
        """
        workers_by_table: dict[Any, list[int]] = {}
        for worker in self.store.workers:
            table = self.store.stream(worker).table
            key = tuple((p.name, p.global_shape or p.shape, p.dtype) for p in table)
            workers_by_table.setdefault(key, []).append(worker)
        return tuple(map(tuple, workers_by_table.values()))

    @cached_property
    def selected(self) -> frozenset[str]:
        """The selected names as a set, for look-ups: a model may have 10,000."""
        return frozenset(self.names)

    def stream(self, kind: str = "full") -> Stream:
        """Return the rows of one kind, selected or not, as they were at the first call."""
        if kind not in self._streams:
            self._streams[kind] = self._opened(kind)
        return self._streams[kind]

    def reader(self, kind: str = "full") -> Reader:
        """Return the reader of the selected parameters' gradients, for rows of one kind."""
        if kind not in self._readers:
            self._readers[kind] = Reader(self.stream(kind), self.selected)
        return self._readers[kind]

    def check(self, kind: str = "full") -> None:
        """Check that the selected rows of one kind can be read as gradients.

        Raises:
            ValueError: a loss scale is not known, or the rows have no element to look at.
        """
        self.reader(kind).check(self.rows(kind))

    def _opened(self, kind: str) -> Stream:
        try:
            return self.store.stream(self.worker, kind)
        except LookupError:  # nothing is tracked: a track without rows
            return Stream(self.store.path, self.worker, kind, self.store.parameters, {})

    @cached_property
    def points(self) -> tuple[str, ...]:
        """The observation points that have rows."""
        kinds = FITTED if any(len(self.stream(kind)) for kind in FITTED) else ("shadow",)
        captured = {str(each) for kind in kinds for each in self.stream(kind).coordinates["point"]}
        return tuple(point for point in PREFERRED if point in captured)

    @property
    def kind(self) -> str:
        """The kind of rows to read one by one: "full", or "track" if no full row is selected.

        Raises:
            ValueError: there is no row.
        """
        for kind in KINDS:
            if self.holds(kind):
                return kind
        check_gradients(self.store)
        if self.holds("summary"):
            remedy = "fit works on those; capture with full= or track= for the rest"
            raise ValueError(f"run must hold gradients, got only Summaries in {self}; {remedy}")
        chosen = [each for each in self.table if each.name in self.selected]
        if not any(each.numel for each in chosen):
            raise ValueError(
                f"parameters {self.parameters!r} must {without_elements(self, chosen)}"
            )
        self.check("track")
        raise ValueError(f"run must have a row, got none in {self}")

    @property
    def remarks(self) -> list[str]:
        """Describe loss scales divided out of the selected rows, and what rows leave out."""
        return [text for kind in FITTED for text in self.reader(kind).remarks(self.rows(kind))]

    @property
    def multiplied(self) -> bool:
        """Whether a loss scale multiplies selected gradients as they are stored."""
        return any((self.reader(kind).divisors[self.rows(kind)] != 1).any() for kind in FITTED)

    def holds(self, kind: str) -> bool:
        """Whether a row of this kind is selected, and has an element of a selected parameter."""
        return bool(self.rows(kind)) and self.reader(kind).numel > 0

    @property
    def fitted_kind(self) -> str:
        """The kind of rows to fit distributions to.

        It is whole gradients, else Summaries, else tracked elements.

        Raises:
            ValueError: there is no row.
        """
        return next((kind for kind in FITTED if self.holds(kind)), None) or self.kind

    @property
    def consecutive(self) -> str:
        """The kind of rows with consecutive steps, which a memory needs.

        Raises:
            ValueError: neither tracked nor full rows have consecutive steps.
        """
        for kind in ("track", "full"):
            steps = self.stream(kind).steps[self.rows(kind)]
            follow = len(steps) > 1 and (np.diff(steps) == 1).mean() > CONSECUTIVE
            if follow and self.holds(kind):
                return kind
        check_gradients(self.store)
        gaps = "have gaps" if self.rows("track") else "are not there: capture with track="
        if self.reader("track").untracked or (self.rows("track") and not self.holds("track")):
            gaps = f"do not help: {self.reader('track').emptiness}"
        raise ValueError(f"a method with memory needs consecutive steps; tracked rows {gaps}")

    def rows(self, kind: str = "full") -> list[int]:
        """Return the indices of the selected rows of one point, without skipped steps."""
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

    def undone(self, kind: str = "full") -> int:
        """Count the rows of one kind that a later segment repeated.

        Stored, but left out by `rows`.
        """
        coordinates = self.stream(kind).coordinates
        kept = last_told(coordinates["step"], coordinates["segment"], self._begins)
        return int((~kept).sum())

    @cached_property
    def _begins(self) -> dict[int, int]:
        """Return the first step of each segment, from rows of every kind."""
        begins: dict[int, int] = {}
        for kind in FITTED:
            coordinates = self.stream(kind).coordinates
            for segment, step in zip(coordinates["segment"], coordinates["step"], strict=True):
                begins[int(segment)] = min(int(step), begins.get(int(segment), int(step)))
        return begins

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return {}

    @cached_property
    def _readers(self) -> dict[str, Reader]:
        return {}


def without_elements(run: Selection, chosen: Sequence[Parameter]) -> str:
    """Word the error for a selection without elements: name a parameter, and others with elements.

    Example: "hold an element, got only e of shape (0, 7); with elements: l.weight, l.bias".
    """
    empty = ", ".join(f"{each.name} of shape {tuple(each.shape)}" for each in chosen[:SHOWN])
    others = [each.name for each in run.table if each.numel]
    shown = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
    return f"hold an element, got only {empty}; with elements: {shown or 'none'}"
