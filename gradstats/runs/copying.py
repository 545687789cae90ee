"""Copy a run, whole or made smaller for sharing: fewer steps, a narrower dtype, Summaries only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.runs.narrowing import Narrowing
from gradstats.store import GradientStore, Parameter, Row, Stream, parameter_table
from gradstats.store.addresses import as_place, restored
from gradstats.store.layout import BLOBS, DTYPES
from gradstats.store.objects import InObjects
from gradstats.store.root import is_vacant
from gradstats.store.rows import as_bits, as_values
from gradstats.store.spool_folder import address, spool_folder
from gradstats.store.whole import whole
from gradstats.summary import summarize
from gradstats.summary.encoding import to_bytes

Progress = Callable[[int, int], None]

MODES = ("full", "track", "summary", "shadow")
_BATCH = 32  # rows of a commit


@dataclass(frozen=True)
class Smaller:
    """What of a run to copy.

    Attributes:
        steps: (start, stop, stride): steps with start <= step < stop, every stride-th of them.
        dtype: of the gradients, such as "bfloat16"; "" keeps theirs. Summaries stay those of the
            captured gradients.
        modes: kinds of rows, None for all there are; "summary" of a run without Summaries makes
            them of its full rows.
        track: how many of the tracked elements to keep, a random choice; None keeps all.
        seed: of that choice.
        allow_loss: accept elements that the dtype makes infinite, and any number that it makes 0.

    Raises:
        ValueError: a setting out of range.
    """

    steps: tuple[int | None, int | None, int] = (None, None, 1)
    dtype: str = ""
    modes: Sequence[str] | None = None
    track: int | None = None
    seed: int = 0
    allow_loss: bool = False

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        unknown = set(self.modes or ()) - set(MODES)
        if unknown:
            rule = f"mode must be some of {', '.join(MODES)}"
            raise ValueError(f"{rule}, got {sorted(unknown)[0]!r}")
        if self.track is not None and self.track < 1:
            raise ValueError(f"track must be a positive number of elements, got {self.track!r}")


def copy(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    smaller: Smaller | None = None,
    *,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Copy a run to a folder, a zip file (``OUT.zarr.zip``) or a URL; rows go one by one.

    A folder or a zip file is there when it is complete, or not at all.

    Of rows that an object store did not get (`store.spool`) what is left is sent instead.

    Args:
        run: Any store, in a folder, a zip file or an object store.
        out: Where to; nothing may be there.
        smaller: What of it; all without.
        progress: Called with how many rows of how many are done.
        say: Called with each line about elements that a narrower dtype lost; default: to stderr.

    Returns:
        How many rows were copied.

    Raises:
        FileExistsError: Something is at ``out``.
        ValueError: Nothing is left to copy, an element is beyond the range of the dtype, or more
            than 0.1 % of the non-zero ones of a parameter would become 0.
        StoreFormatError: ``run`` is not a readable store.
    """
    smaller = smaller or Smaller()
    if address(Path(run)) == restored(out):
        return _send_rest(Path(run), str(out))
    source = GradientStore.open(run)
    jobs = [job for worker in source.workers for job in _jobs(source, worker, smaller)]
    total = sum(len(rows) for _, _, rows in jobs)
    if not total:
        raise ValueError(f"cannot copy {source.path}: no row of it is selected")
    narrowing = Narrowing(smaller.dtype, allow_loss=smaller.allow_loss)
    with _target(source, out, smaller) as store:
        done = 0
        for stream, kind, rows in jobs:
            layout = Layout(stream, smaller, narrowing)
            layout.declare(store, kind)
            for start in range(0, len(rows), _BATCH):
                batch = [layout.row(row, kind) for row in rows[start : start + _BATCH]]
                store.append_rows(batch, stream.worker, kind)
                done += len(batch)
                progress(done, total)
        narrowing.check()
    for line in narrowing.lines():
        (say or _to_stderr)(line)
    return total


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"gradstats: {line}\n")


def _send_rest(folder: Path, url: str) -> int:
    """Send what a recording could not."""
    place = as_place(url)
    if not isinstance(place, InObjects) or spool_folder(place).resolve() != folder.resolve():
        fact = "this process would send from another folder"
        raise ValueError(
            f"cannot send the rows in {folder}: {fact}; set GRADSTATS_SPOOL={folder.parent}"
        )
    local = GradientStore.open(folder)
    tables = {worker: local.stream(worker).table for worker in local.workers}
    with GradientStore.open(url, "a") as store:
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
    with tempfile.TemporaryDirectory(dir=Path(out).absolute().parent) as folder:
        with GradientStore.create(Path(folder, "run"), **settings) as copied:
            yield copied
        _zip(Path(folder, "run"), Path(folder, "run.zip"))
        shutil.move(Path(folder, "run.zip"), out)


def _name(source: GradientStore, smaller: Smaller) -> str:
    """What names the run of a copy: a whole one is the same run, and equal copies are equal."""
    if source.run and smaller == Smaller():
        return source.run
    what = {"of": source.run or source.provenance, **asdict(smaller)}
    del what["allow_loss"]  # says what may be refused, not what is copied
    return uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(what, sort_keys=True, default=list)).hex


def _zip(folder: Path, out: Path) -> None:
    """Pack a store: gradients as they are, since they do not compress, the rest deflated."""
    with zipfile.ZipFile(out, "w") as packed:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            if file.name == ".lock":
                continue
            raw = file.parent.name.startswith(("grad_", "weight_")) and file.name != "zarr.json"
            how = zipfile.ZIP_STORED if raw else zipfile.ZIP_DEFLATED
            entry = zipfile.ZipInfo(str(file.relative_to(folder)))  # of no date: equal bytes
            packed.writestr(entry, file.read_bytes(), how)


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


def _narrowed(table: Sequence[Parameter], dtype: str) -> tuple[Parameter, ...]:
    """The same parameters in another dtype, laid out for it."""
    if not dtype:
        return tuple(table)
    sparse = [p.name for p in table if p.layout == "sparse"]
    laid_out = parameter_table([(p.name, p.shape, dtype) for p in table], sparse=sparse)
    return tuple(
        replace(old, dtype=dtype, offset=new.offset)
        for old, new in zip(table, laid_out, strict=True)
    )


class Layout:
    """Rows of a stream as the copy lays them out.

    Args:
        stream: The rows to copy.
        smaller: What of them.
        narrowing: Converts elements, and counts what is lost over several layouts.
    """

    def __init__(
        self, stream: Stream, smaller: Smaller, narrowing: Narrowing | None = None
    ) -> None:
        self._stream = stream
        self._narrowing = narrowing or Narrowing(smaller.dtype, allow_loss=smaller.allow_loss)
        self._table = _narrowed(stream.table, smaller.dtype)
        ids: Mapping[str, Any] = stream.element_ids or {}
        self._places = _places(stream, _kept(ids, smaller))
        self._element_ids: dict[str, list[NDArray[np.int64]]] = {}
        for old, new, places in zip(stream.table, self._table, self._places, strict=True):
            if old.dtype in ids:
                moved = ids[old.dtype][places] - old.offset + new.offset
                self._element_ids.setdefault(new.dtype, []).append(moved)

    def declare(self, store: GradientStore, kind: str) -> None:
        """Make the stream in the copy."""
        worker = self._stream.worker
        if worker not in store.claimed:
            store.claim(worker, self._table)
        if kind == "track":
            ids = {d: np.concatenate(pieces) for d, pieces in self._element_ids.items()}
            store.set_track(ids, worker)
        elif kind in BLOBS:
            store.add_stream(kind, worker)

    def row(self, row: int, kind: str) -> Row:
        """One row of the copy."""
        stream = self._stream
        step, present = int(stream.steps[row]), stream.present[row]
        facts = {n: column[row].item() for n, column in stream.coordinates.items() if n != "step"}
        if kind in BLOBS:
            data = stream.read_bytes(row) if stream.kind == kind else _summaries(stream, row)
            return Row(step, {}, present, facts, ragged={kind: np.frombuffer(data, np.uint8)})
        weights = self._flat(row, "weight") if "weight" in stream.quantities else None
        return Row(step, self._flat(row, "grad"), present, facts, weights, self._sparse(row))

    def _flat(self, row: int, quantity: str) -> dict[str, Tensor]:
        stream = self._stream
        flat = {d: stream.read_flat(row, d, quantity=quantity) for d in stream.dtypes}
        pieces: dict[str, list[Tensor]] = {}
        for old, new, places in zip(stream.table, self._table, self._places, strict=True):
            if old.dtype in flat:
                piece = self._converted(row, flat[old.dtype][places], new, quantity)
                pieces.setdefault(new.dtype, []).append(piece)
        return {dtype: torch.cat(parts) for dtype, parts in pieces.items()}

    def _sparse(self, row: int) -> dict[str, NDArray[Any]]:
        """The indices and values of sparse gradients."""
        ragged = {}
        for place, (old, new) in enumerate(zip(self._stream.table, self._table, strict=True)):
            if old.layout == "sparse" and self._stream.kind == "full":
                ragged[f"indices_{place}"] = self._stream.read_ragged(row, f"indices_{place}")
                values = as_values(self._stream.read_ragged(row, f"values_{place}"), old.dtype)
                ragged[f"values_{place}"] = as_bits(self._converted(row, values, new, "grad"))
        return ragged

    def _converted(self, row: int, values: Tensor, new: Parameter, quantity: str) -> Tensor:
        """Values of a row in the dtype of the copy."""
        coordinates = self._stream.coordinates
        scale = f", multiplied by a loss scale of {float(coordinates['loss_scale'][row]):g}"
        note = scale if coordinates["unscaled"][row] == 0 else ""
        step = int(self._stream.steps[row])
        return self._narrowing(values, new.name, step, note, quantity)


def _kept(ids: Mapping[str, Any], smaller: Smaller) -> dict[str, NDArray[np.int64]]:
    """Which of the tracked elements of each dtype to keep, sorted."""
    counts = {dtype: len(places) for dtype, places in ids.items()}
    total = sum(counts.values())
    rng = np.random.default_rng(smaller.seed)
    count = min(total, smaller.track or total)
    drawn = np.sort(rng.choice(total, count, replace=False, shuffle=False))
    ends = np.cumsum([0, *counts.values()])
    return {
        dtype: drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, stop)] - start
        for dtype, start, stop in zip(counts, ends, ends[1:], strict=False)
    }


def _places(stream: Stream, kept: Mapping[str, Any]) -> list[NDArray[np.int64] | slice]:
    """Where each parameter's elements are in the vectors of a stream."""
    indices: list[NDArray[np.int64] | slice] = []
    for p in stream.parameters:
        if p.dtype in kept:
            first, stop = np.searchsorted(kept[p.dtype], [p.offset, p.offset + p.numel])
            indices.append(kept[p.dtype][first:stop])
        else:
            indices.append(slice(p.offset, p.offset + p.numel))
    return indices


def _summaries(stream: Stream, row: int) -> bytes:
    """The Summaries of a full row, one for each parameter with a gradient."""
    present = [p.name for p, has in zip(stream.table, stream.present[row], strict=True) if has]
    return to_bytes([summarize(stream.read(row, name)) for name in present])
