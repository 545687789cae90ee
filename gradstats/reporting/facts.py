"""What the page needs beside the tables: facts of the run, kept so that it renders without it."""

from __future__ import annotations

import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from gradstats.runs.groups import groups
from gradstats.runs.parts import replacing
from gradstats.runs.results import Results, in_json
from gradstats.runs.run import Run
from gradstats.runs.selection import FITTED
from gradstats.summary import Summary
from gradstats.summary.sums import Sums

Row = dict[str, Any]
LAST = "last_gradient.npz"
COUNTS = ("bins", "positive", "negative")


def facts(run: Run, device: str) -> Row:
    """Facts of the run and of what is selected, as JSON has them."""
    return {
        "lines": _lines(run, device),
        "points": _points(run),
        "remarks": run.remarks,
        "multiplied": run.multiplied,
        "tracked_share": tracked_share(run) if run.rows("track") else None,
    }


def _lines(run: Run, device: str) -> list[list[str]]:
    """(name, value) of what stands at the top of the page."""
    provenance = run.store.provenance
    rows = {kind: run.rows(kind) for kind in FITTED}
    steps = [int(run.stream(kind).steps[row]) for kind, which in rows.items() for row in which]
    elements = sum(part.numel for part in run.parts("full"))
    tracked = sum(part.numel for part in run.parts("track"))
    of_tracked = f"{len(rows['track'])} of {tracked:,} elements" if rows["track"] else "none"
    return [
        ["model", str(provenance.get("model", "unknown"))],
        ["parameters", f"{elements:,} elements in {len(run.names)} tensors"],
        ["observation point", ", ".join(_points(run))],
        ["steps", f"{min(steps)}–{max(steps)}"],
        ["full rows", str(len(rows["full"]))],
        ["tracked rows", of_tracked],
        *([["rows of Summaries", str(len(rows["summary"]))]] if rows["summary"] else []),
        ["captured on", str(provenance.get("device", "unknown"))],
        ["timed on", device],
    ]


def _points(run: Run) -> list[str]:
    kind = run.fitted_kind
    points = run.stream(kind).coordinates["point"][run.rows(kind)]
    return sorted({str(point) for point in points})


def tracked_share(run: Run) -> float:
    """Tracked elements over all elements of the model, those with sparse gradients included."""
    ids = run.stream("track").element_ids or {}
    return sum(map(len, ids.values())) / max(1, sum(part.numel for part in run.table))


def keep_last(results: Results) -> None:
    """Keep the Summary of the last captured gradient, unless it is there."""
    path, key = results.folder / LAST, in_json(results.identity)
    if path.exists() and _stored(path).get("key") == key:
        return
    run = results.opened
    ((last,),) = groups(run, first=len(run.rows(run.fitted_kind)) - 1)
    of = last.summary
    numbers = {each.name: getattr(of, each.name) for each in fields(of) if each.name not in COUNTS}
    stored = {"key": key, "ok": last.status == "ok", "summary": numbers}
    text = json.dumps(stored, default=lambda number: number.item())
    buffer = BytesIO()
    np.savez(
        buffer,
        text=np.frombuffer(text.encode(), np.uint8),
        bins=of.bins,
        positive=of.positive,
        negative=of.negative,
    )
    with replacing(path) as new:
        new.write_bytes(buffer.getvalue())


def read_last(folder: Path) -> Summary | None:
    """The Summary of the last captured gradient; None if it had no gradient."""
    path = folder / LAST
    stored = _stored(path)
    if not stored["ok"]:
        return None
    numbers = stored["summary"]
    with np.load(path) as arrays:
        counts = {name: arrays[name] for name in COUNTS}
    sums = numbers.pop("sums")
    return Summary(**counts, **numbers, sums=Sums(*sums) if sums else None)


def _stored(path: Path) -> Row:
    try:
        with np.load(path) as arrays:
            return dict(json.loads(arrays["text"].tobytes()))
    except (ValueError, KeyError, OSError):
        return {}
