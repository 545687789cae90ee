"""A run: a store, and the selection of parameters, steps and worker to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gradstats.patterns import matching
from gradstats.ratios import DenseRule, Part
from gradstats.runs.emptiness import check_gradients, check_rows
from gradstats.runs.reading import SHOWN, Reader, last_told
from gradstats.settings import SettingError
from gradstats.store import GradientStore, Parameter, Stream
from gradstats.summary import Summary

if TYPE_CHECKING:
    from gradstats.compressors import Compressor

Progress = Callable[[int, int], None]  # done, of how many
KINDS = ("full", "track")  # of rows that are gradients
FITTED = ("full", "summary", "track")  # of rows that distributions can be fitted to, best first
PREFERRED = ("local", "outer", "reduced", "clipped", "unknown")
OWN = ("local", "outer", "unknown")  # each worker has its own; the others are of all workers
CONSECUTIVE = 0.99  # of the steps must follow the one before


@dataclass(frozen=True)
class Run:
    """A captured run, opened for reading.

    It reads gradients: a loss scale that still multiplies stored rows is divided out
    (rows of float16 and bfloat16 are then read as float32), and a sparse gradient has its zeros.
    `stream(kind).read` returns a row as it is stored.

    Attributes:
        store: the store of the run.
        parameters: name or glob of the parameters to look at, or several in a tuple; see
            `gradstats.patterns`.
        steps: (start, stop, stride): rows with start <= step < stop, every stride-th of them.
        worker: data-parallel worker.
        point: the observation point; "" selects local rows if there are any, since a compressor
            gets those, else outer, else reduced, else clipped.
        device: the device of the gradients that are read.
    """

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

    def __getstate__(self) -> dict[str, Any]:
        # tasks elsewhere open the streams themselves, and get no copy of what was read here
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        kinds = [kind for kind in (*KINDS, "summary") if len(self.stream(kind)) or kind in KINDS]
        rows = " + ".join(f"{len(self.stream(kind))} {kind} rows" for kind in kinds)
        undone = sum(self.undone(kind) for kind in kinds)
        rows += f" ({undone} of them undone)" if undone else ""
        return f"Run({str(self.store.path)!r}, {rows}, {len(self.names)} parameters)"

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

    def read(self, step: int, parameter: str | None = None, *, kind: str = "full") -> Tensor:
        """Read the gradient of one step: flat, or one parameter in its shape.

        The flat gradient has all parameters, in table order, sparse ones with their zeros. One
        sparse parameter is returned as a coalesced sparse tensor.

        Raises:
            ValueError: the step has no row, there is no such parameter, or a loss scale is not
                known.
        """
        stream = self.stream(kind)
        rows = [row for row in self.rows(kind) if stream.steps[row] == step]
        if not rows:
            near = sorted(stream.steps, key=lambda other: abs(int(other) - step))[:3]
            shown = ", ".join(str(other) for other in sorted(near)) or "none"
            raise ValueError(f"step must have a {kind} row, the nearest are {shown}, got {step}")
        reader = Reader(stream, frozenset(part.name for part in stream.table))
        row = rows[-1]
        values = reader.gradient(row) if parameter is None else reader.parameter(row, parameter)
        return values.to(self.device)

    def gradients(self, kind: str = "full", *, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Iterate over (step, flat gradient of the selected parameters) of the selected rows.

        Args:
            kind: kind of rows: "full" or "track".
            first: number of rows to leave out at the beginning.
        """
        self.check(kind)
        for row in self.rows(kind)[first:]:
            yield self.gradient(row, kind)

    def losses(self, kind: str = "full") -> dict[int, float]:
        """Return the losses that were logged at capture by step; NaN where there was none."""
        stream = self.stream(kind)
        losses = stream.coordinates["loss"]
        return {int(stream.steps[row]): float(losses[row]) for row in self.rows(kind)}

    def compensated(
        self, spec: str | Compressor, *, seed: int = 0
    ) -> Iterator[tuple[int, Summary]]:
        """Summarise the compensated gradient of each step: gradient + residual before compression.

        It is the vector that a compressor with a memory encodes, of the selected parameters
        together. The steps must be consecutive: those of the tracked rows if there are any, else
        those of the full rows. `gradstats.fit(run, compensated=spec)` fits the same vectors.

        Args:
            spec: a compressor or its spec, such as "topk(0.01)" or "lowpass(topk(0.01))"; one
                without a memory gets error feedback.
            seed: whole number from which random methods derive their random numbers.

        Yields:
            (step, Summary), without steps that have a NaN or inf.

        Raises:
            ValueError: no such compressor, no consecutive steps, or a loss scale is not known.

        Example:
            >>> import gradstats
            >>> run = gradstats.load_example()
            >>> step, summary = next(run.compensated("topk(0.01)"))
            >>> step, summary.n
            (504, 1200)
        """
        from gradstats.compressors import compressor
        from gradstats.runs.compensated import compensated_groups

        chosen = compressor(spec) if isinstance(spec, str) else spec
        for groups in compensated_groups(self, chosen, seed=seed):
            yield groups[0].step, groups[0].summary

    def beside(self, workers: int) -> tuple[Run, ...]:
        """Return the same selection for several workers.

        Args:
            workers: number of workers: the first ones that were captured with the same parameters
                as this run's worker. 1 stands for this run's worker alone.

        Returns:
            One run per worker.

        Raises:
            ValueError: fewer workers were captured, or their gradients are reduced ones, which are
                the same for all workers.
        """
        if workers == 1:
            return (self,)
        own_stage = next(stage for stage in self.stages if self.worker in stage)
        if not 1 < workers <= len(own_stage):
            remedy = "gradstats import --files-per-step makes some of micro-batches"
            rule = f"must be from 1 to {len(own_stage)}, those captured"
            rule += " with the same parameters" if len(self.stages) > 1 else ""
            raise SettingError("workers", f"{rule}, got {workers!r}; {remedy}")
        runs = tuple(replace(self, worker=worker) for worker in own_stage[:workers])
        points = {run.point or (run.points or ("unknown",))[0] for run in runs}
        if points - set(OWN):
            fact = f"got the point {', '.join(sorted(points))}"
            raise ValueError(f"gradients of several workers must be local ones, {fact}")
        return runs

    def together(
        self, workers: int, kind: str = "full", *, first: int = 0
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Iterate over the gradients of several workers at the steps that all of them have.

        Args:
            workers: number of workers, as `beside` takes it.
            kind: kind of rows: "full" (whole gradients) or "track" (the same random elements at
                every step).
            first: number of steps to leave out at the beginning.

        Yields:
            (step, gradients): one flat gradient per worker, `[n]`, in worker order.

        Raises:
            ValueError: fewer workers were captured, their gradients are reduced ones, or the
                workers track different elements.
        """
        runs = self.beside(workers)
        for run in runs:
            run.check(kind)
        ids = [run.stream(kind).element_ids or {} for run in runs]
        if any(other.keys() != ids[0].keys() for other in ids) or any(
            not np.array_equal(other[dtype], ids[0][dtype]) for other in ids for dtype in other
        ):
            raise ValueError("workers must track the same elements, got different ones")
        rows = [run.rows_by_step(kind) for run in runs]
        for step in sorted(set(rows[0]).intersection(*rows[1:]))[first:]:
            pairs = zip(runs, rows, strict=True)
            yield step, [run.gradient(of[step], kind)[1] for run, of in pairs]

    def rows_by_step(self, kind: str = "full") -> dict[int, int]:
        """Return the index of the selected row of each step."""
        steps = self.stream(kind).steps
        return {int(steps[row]): row for row in self.rows(kind)}

    def steps_together(self, workers: int, kind: str = "full") -> int:
        """Count the steps that `together` iterates over, or the selected rows of one worker."""
        if workers == 1:
            return len(self.rows(kind))
        first, *others = (run.rows_by_step(kind) for run in self.beside(workers))
        return len(set(first).intersection(*others))

    def gradient(self, row: int, kind: str = "full") -> tuple[int, Tensor]:
        """Return (step, flat gradient of the selected parameters) of one row."""
        grad = self.reader(kind).gradient(row)
        return int(self.stream(kind).steps[row]), grad.to(self.device)

    def parameter(self, row: int, name: str, quantity: str = "grad") -> Tensor:
        """Read the gradient or the weight of one parameter in one full row, dense, in its shape.

        Raises:
            LookupError: it had no gradient in that row, or the row has no weights.
        """
        return self.reader("full").parameter(row, name, quantity).to_dense().to(self.device)

    def parts(self, kind: str = "full", rule: DenseRule | None = None) -> tuple[Part, ...]:
        """Describe the selected parameters as parts of the vectors that `gradients` yields.

        Args:
            kind: "full" or "track".
            rule: Which parameters are dense, by their shape in the model; None is the default of
                `DenseRule`, as in the communication hook.
        """
        rule = rule or DenseRule()
        whole = {p.name: p.global_shape or p.shape for p in self.table}
        return tuple(
            Part(
                parameter.name,
                parameter.numel,
                dense=rule.is_dense(whole[parameter.name]),
                shape=parameter.shape if kind == "full" else (),
            )
            for parameter in self.reader(kind).parameters
        )

    def summaries(self, row: int) -> dict[str, Summary]:
        """Read one row of kind "summary": Summaries by name, of the parameters with a gradient."""
        return self.reader("summary").summaries(row)

    def shadow_rows(self) -> list[dict[str, Any]]:
        """Return the results of shadow compressors, one row per step and compressor.

        Columns are those of a replay: compressor, step, error, bits, residual_ratio, status …
        """
        stream = self.stream("shadow")
        steps = stream.coordinates["step"]
        rows = []
        for row in self.rows("shadow"):
            for line in json.loads(stream.read_bytes(row)):
                rows.append({**line, "step": int(steps[row])})
        return rows


def without_elements(run: Run, chosen: Sequence[Parameter]) -> str:
    """Word the error for a selection without elements: name a parameter, and others with elements.

    Example: "hold an element, got only e of shape (0, 7); with elements: l.weight, l.bias".
    """
    empty = ", ".join(f"{each.name} of shape {tuple(each.shape)}" for each in chosen[:SHOWN])
    others = [each.name for each in run.table if each.numel]
    shown = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
    return f"hold an element, got only {empty}; with elements: {shown or 'none'}"
