"""What a run holds, as one document and as lines: `gradstats info`, with and without `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.runs import Run

Document = dict[str, Any]
KINDS = ("full", "track", "summary", "shadow")


def described(run: Run) -> Document:
    """The document of a run: its rows by worker and kind, its parameters, and which are not well.

    A stage is a set of workers that hold the same parameters: one, except under pipeline
    parallelism.
    """
    store = run.store
    return {
        "run": repr(run),
        "path": str(store.path),
        "bytes": store.nbytes,
        "provenance": store.provenance,
        "rows": [
            _rows(replace(run, worker=worker), kind)
            for worker in store.workers
            for kind in KINDS
            if len(replace(run, worker=worker).stream(kind))
        ],
        "stages": [_stage(run, stage) for stage in run.stages or (store.workers,)],
    }


def _rows(run: Run, kind: str) -> Document:
    stream = run.stream(kind)
    coordinates = stream.coordinates
    inner = coordinates["inner_steps"][coordinates["inner_steps"] > 0]
    return {
        "worker": run.worker,
        "kind": kind,
        "rows": len(stream),
        "first_step": int(stream.steps[0]),
        "last_step": int(stream.steps[-1]),
        "points": sorted(set(coordinates["point"].tolist())),
        "inner_steps": [int(inner.min()), int(inner.max())] if len(inner) else None,
        "undone": run.undone(kind),
        "remarks": list(run.reader(kind).remarks(range(len(stream)))),
    }


def _stage(run: Run, workers: tuple[int, ...]) -> Document:
    from gradstats.runs.health import findings
    from gradstats.runs.selection import FITTED

    of_stage = replace(run, worker=workers[0]) if workers else run
    fitted = any(of_stage.holds(kind) for kind in FITTED)
    return {
        "workers": list(workers),
        "findings": [asdict(one) for one in findings(of_stage)] if fitted else [],
        "parameters": [
            {
                "name": parameter.name,
                "shape": list(parameter.shape),
                "dtype": parameter.dtype,
                "module_type": parameter.module_type,
                "layout": parameter.layout,
                "aliases": list(parameter.aliases),
            }
            for parameter in of_stage.table
        ],
    }


def lines(document: Document) -> Iterator[str]:
    """The document, line by line."""
    yield f"{document['run']}, {document['bytes'] / 1e6:,.1f} MB"
    for name, value in document["provenance"].items():
        yield f"  {name}: {value}"
    for rows in document["rows"]:
        yield from _row_lines(rows)
    for stage in document["stages"]:
        if len(document["stages"]) > 1:
            workers = ", ".join(map(str, stage["workers"]))
            yield f"  worker {workers}: parameters that other workers do not have"
        for one in stage["findings"]:
            yield f"  {one['parameter']}: {one['state']}, {one['detail']}"
        yield from map(_parameter_line, stage["parameters"])


def _row_lines(rows: Document) -> Iterator[str]:
    steps = f"steps {rows['first_step']}–{rows['last_step']}"
    points, inner = ", ".join(rows["points"]), _inner_steps(rows["inner_steps"])
    counted = f"worker {rows['worker']}: {rows['rows']} {rows['kind']} rows"
    yield f"  {counted}, {steps}, {points}{inner}"
    for text in rows["remarks"]:
        yield f"    {text}"
    if rows["undone"]:
        fact = f"{rows['undone']} of them undone by a later segment, which readers leave out"
        yield f"    {fact}: {rows['rows'] - rows['undone']} rows are read"


def _inner_steps(span: list[int] | None) -> str:
    """The inner steps that pseudo-gradients sum, if there are any."""
    if span is None:
        return ""
    least, most = span
    return f", {least} inner steps" if least == most else f", {least} to {most} inner steps"


def _parameter_line(parameter: Document) -> str:
    shape = "×".join(map(str, parameter["shape"])) or "scalar"
    sparse = "  sparse gradients" if parameter["layout"] != "dense" else ""
    aliases = ", ".join(parameter["aliases"])
    tied = f"  tied with {aliases}" if aliases else ""
    kind = f"{parameter['dtype']}  {parameter['module_type']}"
    return f"  {parameter['name']}  {shape}  {kind}{sparse}{tied}"
