"""A run: a store, and the selection of parameters, steps and worker to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gradstats.ratios import DenseRule, Part
from gradstats.runs.reading import Reader
from gradstats.runs.selection import KINDS, OWN, Selection
from gradstats.settings import SettingError
from gradstats.summary import Summary

if TYPE_CHECKING:
    from gradstats.compressors import Compressor

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Run(Selection):
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

    def __getstate__(self) -> dict[str, Any]:
        # tasks elsewhere open the streams themselves, and get no copy of what was read here
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        kinds = [kind for kind in (*KINDS, "summary") if len(self.stream(kind)) or kind in KINDS]
        rows = " + ".join(f"{len(self.stream(kind))} {kind} rows" for kind in kinds)
        undone = sum(self.undone(kind) for kind in kinds)
        rows += f" ({undone} of them undone)" if undone else ""
        return f"Run({str(self.store.path)!r}, {rows}, {len(self.names)} parameters)"

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
