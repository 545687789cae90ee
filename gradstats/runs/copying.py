"""Copy a run, whole or made smaller for sharing: fewer steps, a narrower dtype, Summaries only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.runs.emptiness import check_rows
from gradstats.runs.narrowing import Narrowing
from gradstats.runs.parts import noting
from gradstats.runs.smaller import MODES, Layout, Smaller, _narrowed
from gradstats.store import GradientStore, Row, Stream
from gradstats.store.addresses import as_place, restored
from gradstats.store.objects import InObjects
from gradstats.store.refusals import writing
from gradstats.store.root import is_vacant
from gradstats.store.spool_folder import address, spool_folder
from gradstats.store.whole import whole

Progress = Callable[[int, int], None]

_BATCH_ROWS, _BATCH_BYTES = 32, 64_000_000  # of a commit, at most; a larger row has its own
ROOM = 1024  # bytes at the end of a chunk that are 0 where rows are still to come


def copy(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    smaller: Smaller | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Copy a run to a folder, a zip file (`OUT.zarr.zip`) or a URL, row by row.

    A row is one captured step of one worker. A folder or zip file appears when it is complete, or
    not at all.

    One case is different. A recording to an object store (a URL) keeps the rows that it could not
    send in a local folder, its spool folder. If `run` is that folder and `out` is the URL of the
    recording, the waiting rows are added to the store at `out`, which exists already. `smaller`,
    `progress` and `say` are then ignored.

    Args:
        run: Path or URL of a store: a folder, a zip file or an object store.
        out: Path or URL of the copy. Nothing may exist at it, except for a spool folder's URL.
        smaller: Part of the run to copy, see `Smaller`; None: all of it.
        progress: Function that is called with (rows copied, rows in all); None: none.
        say: Function that is called with each line of text about elements that a narrower dtype
            made infinite or 0; None: the lines are printed to stderr.

    Returns:
        The number of rows that were copied or sent.

    Raises:
        FileExistsError: Something exists at `out`.
        NoGradientsError: The run has no row.
        ValueError: No row is selected, an element is beyond the range of the dtype, more than
            0.1 % of the non-zero elements of a parameter would become 0, or this process uses
            another spool folder for `out`.
        StoreFormatError: `run` is not a readable store.
        OSError: The object store did not take the waiting rows.
    """
    smaller = smaller or Smaller()
    if address(Path(run)) == restored(out):
        return _send_rest(Path(run), str(out))
    source = GradientStore.open(run)
    jobs = [job for worker in source.workers for job in _jobs(source, worker, smaller)]
    total = sum(len(rows) for _, _, rows in jobs)
    if not total:
        check_rows(source)
        raise ValueError(f"cannot copy {source.path}: no row of it is selected")
    narrowing = Narrowing(smaller.dtype, allow_loss=smaller.allow_loss)
    kept = f"nothing is left of {restored(out)}; the same command begins anew"
    with noting(kept), _target(source, out, smaller) as store:
        done = 0
        for stream, kind, rows in jobs:
            layout = Layout(stream, smaller, narrowing)
            layout.declare(store, kind)
            for batch in _batches(layout.row(row, kind) for row in rows):
                store.append_rows(batch, stream.worker, kind)
                done += len(batch)
                if progress:
                    progress(done, total)
        narrowing.check()
    for line in narrowing.lines():
        (say or _to_stderr)(line)
    return total


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into those of one commit, which are in memory together."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH_ROWS or sum(map(_nbytes, batch)) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _nbytes(row: Row) -> int:
    vectors: tuple[Any, ...] = (*row.flat.values(), *(row.weights or {}).values())
    return sum(vector.nbytes for vector in (*vectors, *row.ragged.values()))


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"gradstats: {line}\n")


def _send_rest(folder: Path, url: str) -> int:
    """Send the rows that a recording could not send."""
    place = as_place(url)
    if not isinstance(place, InObjects) or spool_folder(place).resolve() != folder.resolve():
        fact = "this process would send from another folder"
        raise ValueError(
            f"cannot send the rows in {folder}: {fact}; set GRADSTATS_SPOOL={folder.parent}"
        )
    local = GradientStore.open(folder)
    tables = {worker: local.stream(worker).table for worker in local.workers}
    sent = f"rows that were sent are at {url}; the same command sends the rest"
    with noting(sent), GradientStore.open(url, "a") as store:
        rows = _rows(local) - _rows(GradientStore.open(url))
        for worker, table in tables.items():
            store.claim(worker, table)
    if store.fault:
        raise OSError(f"cannot send the rows in {folder}: {store.fault}")
    return rows


def _rows(store: GradientStore) -> int:
    total = 0
    for worker, kind in product(store.workers, MODES):
        with suppress(LookupError):
            total += len(store.stream(worker, kind))
    return total


@contextmanager
def _target(
    source: GradientStore, out: str | os.PathLike[str], smaller: Smaller
) -> Iterator[GradientStore]:
    """The store to write."""
    about = {
        "copied": {
            "from": source.path.name,
            "steps": ":".join("" if s is None else str(s) for s in smaller.steps),
            "dtype": smaller.dtype or "as captured",
            "modes": list(smaller.modes or ["all"]),
            "track": smaller.track or "as captured",
        }
    }
    if not is_vacant(as_place(out)):
        raise FileExistsError(f"cannot create {out}: it exists; choose another name")
    settings: Any = {
        "parameters": _narrowed(source.parameters, smaller.dtype),
        "provenance": {**source.provenance, **about},
        "run": _name(source, smaller),
    }
    if not os.fspath(out).endswith(".zip"):
        with whole(out, **settings) as store:
            yield store
        if store.fault:
            raise OSError(f"cannot copy all of {source.path}: {store.fault}")
        return
    path = Path(out).absolute()
    with writing(path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
        folder = stack.enter_context(beside)
        with GradientStore.create(Path(folder, "run"), **settings) as copied:
            yield copied
        _zip(Path(folder, "run"), Path(folder, "run.zip"))
        shutil.move(Path(folder, "run.zip"), out)


def _name(source: GradientStore, smaller: Smaller) -> str:
    """Return the run's name for a copy: a whole copy keeps it, equal copies have equal names."""
    if source.run and smaller == Smaller():
        return source.run
    what = {"of": source.run or source.provenance, **asdict(smaller)}
    del what["allow_loss"]  # says what may be refused, not what is copied
    return uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(what, sort_keys=True, default=list)).hex


def _zip(folder: Path, out: Path) -> None:
    """Pack a store: full chunks of gradients as they are, since they do not compress.

    The rest is deflated, also a chunk that has room for more rows, which is zeros.
    """
    with zipfile.ZipFile(out, "w") as packed:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            if file.name == ".lock":
                continue
            data = file.read_bytes()
            raw = file.parent.name.startswith(("grad_", "weight_")) and file.name != "zarr.json"
            how = zipfile.ZIP_STORED if raw and any(data[-ROOM:]) else zipfile.ZIP_DEFLATED
            entry = zipfile.ZipInfo(str(file.relative_to(folder)))  # of no date: equal bytes
            packed.writestr(entry, data, how)


def _jobs(
    source: GradientStore, worker: int, smaller: Smaller
) -> Iterator[tuple[Stream, str, list[int]]]:
    """(stream, kind to write, its rows) of one worker."""
    streams = {}
    for kind in MODES:
        try:
            streams[kind] = source.stream(worker, kind)
        except LookupError:
            continue
    for mode in (mode for mode in MODES if mode in (smaller.modes or streams)):
        asked = mode == "summary" and bool(smaller.modes)
        made_here = asked and not len(streams.get("summary", ()))
        stream = streams.get("full" if made_here else mode)
        if stream is not None and len(stream):
            rows = _selected(stream.steps, smaller.steps)
            if rows:
                yield stream, mode, rows


def _selected(steps: NDArray[np.int64], wanted: tuple[int | None, int | None, int]) -> list[int]:
    start, stop, stride = wanted
    inside = np.ones(len(steps), bool)
    if start is not None:
        inside &= steps >= start
    if stop is not None:
        inside &= steps < stop
    kept = np.unique(steps[inside])[::stride]  # several points and segments share a step
    return [int(row) for row in np.flatnonzero(inside & np.isin(steps, kept))]
