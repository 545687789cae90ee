"""The one writer of one worker's group, and the commit protocol.

Chunks first, then coordinates, then the shape, and *the shape is the commit*: the worker's
zarr.json holds the metadata of all its arrays inline, so replacing that one file makes every array
of a stream longer at the same instant. A reader of the group never sees anything in between;
leftovers of a killed writer beyond the shape are ignored, and removed by the next writer.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradstats.store.files import replace_file, take_lock, write_file
from gradstats.store.growing import Growing
from gradstats.store.layout import (
    COORDINATES,
    DTYPES,
    GROUP_ATTRIBUTES,
    PREFIXES,
    QUANTITIES,
    Document,
    chunk_shape,
    element_ids_document,
    encode,
    group_document,
    in_stream,
    lengthened,
    ragged_dtypes,
    stream_documents,
    stream_rows,
    vector_documents,
)
from gradstats.store.parameters import Parameter, widths
from gradstats.store.recovery import copy_metadata, sweep
from gradstats.store.rows import Order, Row, as_bits, check_order, check_row, coordinate_values

Vector = np.ndarray[Any, Any]

ORDERED = ("segment", "step", "micro_step", "point")

#: For so long the metadata of single arrays may lag behind the commits.
COPY_SECONDS = 10.0


class WorkerWriter:
    """The writer that appends to the streams of one worker.

    Holds the worker's lock until it is closed.

    Args:
        root: the store.
        worker: the data-parallel worker.
        table: the parameters as this worker's rows lay them out.
        attributes: attributes of the worker's group, written if this writer begins the group.
        shared: whether small rows share chunks in the streams that this writer begins.
    """

    def __init__(
        self,
        root: Path,
        worker: int,
        table: Sequence[Parameter],
        attributes: Mapping[str, Any] | None = None,
        *,
        shared: bool = True,
    ) -> None:
        self.path = root / f"worker_{worker}"
        self.table, self._shared = tuple(table), shared
        self.row_widths, self.parameters = widths(table), len(table)
        self.attributes: Document = {**GROUP_ATTRIBUTES, **(attributes or {})}
        (self.path / "step").mkdir(parents=True, exist_ok=True)
        # inside an array: Zarr warns about a file it does not know beside one
        self._lock = take_lock(self.path / "step/.lock", f"worker {worker} of {root}")
        self.documents: dict[str, Document] = {}  # key -> committed metadata
        self._behind: set[str] = set()  # keys whose copies are older, and when they were made
        self._copied = 0.0
        self._growing = Growing(self.path)
        self._orders: dict[str, Order] = {}  # of the last committed row, by prefix
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise

    def _begin(self) -> None:
        """Continue from the last commit, or make the first: a stream without rows."""
        if not (self.path / "zarr.json").exists():
            self._commit(self._made(PREFIXES["full"], self._stream("full", self.row_widths)))
        group = json.loads((self.path / "zarr.json").read_bytes())
        self.attributes = group["attributes"]
        self.documents = self._committed()
        sweep(self.path, self.documents)

    def close(self) -> None:
        """Update the copies of the metadata and release the lock."""
        self._copy()
        self._growing.close()
        self._lock.close()

    def rest(self) -> None:
        """Hold no file open but the lock until the next rows."""
        self._growing.close()

    def set_track(self, element_ids: Mapping[str, Vector]) -> None:
        """Commit the tracked elements, which never change afterwards, and a track without rows."""
        names = {f"element_ids_{dtype}": dtype for dtype in element_ids}
        documents = {
            name: element_ids_document(dtype, len(element_ids[dtype]), self.row_widths[dtype])
            for name, dtype in names.items()
        }
        counts = {dtype: len(ids) for dtype, ids in element_ids.items()}
        new = self._made("track/", {**documents, **self._stream("track", counts)})
        for name, dtype in names.items():
            self._write_chunks("track/" + name, documents[name], "c.{}", element_ids[dtype])
        self._commit({**self.documents, "track": group_document(GROUP_ATTRIBUTES), **new})

    def add_stream(self, kind: str) -> None:
        """Commit a stream of bytes without rows, unless it exists."""
        if kind not in self.documents:
            new = self._made(PREFIXES[kind], self._stream(kind, {}))
            self._commit({**self.documents, kind: group_document(GROUP_ATTRIBUTES), **new})

    def _stream(self, kind: str, row_widths: Mapping[str, int]) -> dict[str, Document]:
        ragged = ragged_dtypes(kind, self.table)
        return stream_documents(row_widths, self.parameters, ragged, shared=self._shared)

    def append(self, kind: str, rows: Sequence[Row]) -> None:
        """Commit rows, all of them or none."""
        prefix = PREFIXES[kind]
        if prefix + "step" not in self.documents:
            fact = "no elements are tracked; use set_track"
            if kind != "track":
                fact = f"no such stream; use add_stream({kind!r})"
            raise ValueError(f"cannot append {kind} rows: {fact}")
        start = stream_rows(self.documents, prefix)
        documents = self.documents
        if start == 0 and rows[0].weights is not None:
            weights = vector_documents("weight", self._widths(prefix), shared=self._shared)
            documents = {**documents, **self._made(prefix, weights)}
        columns = self._check(rows, prefix, documents)
        data, starts = {}, {}
        for name, pieces in self._ragged(rows, prefix).items():
            key = f"{name}_data"
            starts[key] = int(self.documents[prefix + key]["shape"][0])
            columns[f"{name}_ends"] = starts[key] + np.cumsum([len(piece) for piece in pieces])
            data[key] = np.concatenate(pieces)
        items = {key: starts[key] + len(values) for key, values in data.items()}
        self._orders.pop(prefix, None)
        try:
            for index, row in enumerate(rows, start):
                for name in row.late.keys() & columns.keys():
                    columns[name][index - start] = row.late[name]()
                self._write_row(prefix, index, row, documents)
            for name, values in data.items():
                self._growing.write(prefix + name, documents[prefix + name], starts[name], values)
            for name, column in columns.items():
                self._growing.write(prefix + name, documents[prefix + name], start, column)
            self._commit(lengthened(documents, prefix, start + len(rows), items))
            self._orders[prefix] = _order(columns, -1)
            self._growing.settle()
        except BaseException:
            self.documents = self._committed()  # an interrupt may have struck after the commit
            raise

    def _ragged(self, rows: Sequence[Row], prefix: str) -> dict[str, list[Vector]]:
        """Return the rows' parts of each ragged array of the stream, in the array's dtype."""
        names = {
            key.removeprefix(prefix).removesuffix("_data"): document["data_type"]
            for key, document in self.documents.items()
            if in_stream(key, prefix) and key.endswith("_data")
        }
        for row in rows:
            unknown = set(row.ragged) - set(names)
            if unknown:
                fact = f"this stream has no ragged array {sorted(unknown)[0]!r}"
                raise ValueError(f"cannot append step {row.step}: {fact}")
        return {
            name: [np.asarray(row.ragged.get(name, ()), dtype).reshape(-1) for row in rows]
            for name, dtype in names.items()
        }

    def _made(self, prefix: str, documents: Mapping[str, Document]) -> dict[str, Document]:
        """Create the folders of documents; return the documents by key."""
        for name in documents:
            (self.path / prefix / name).mkdir(parents=True, exist_ok=True)
        return {prefix + name: document for name, document in documents.items()}

    def _committed(self) -> dict[str, Document]:
        group = json.loads((self.path / "zarr.json").read_bytes())
        return dict(group["consolidated_metadata"]["metadata"])

    def _widths(self, prefix: str) -> dict[str, int]:
        """Count the elements of a row of this stream by dtype."""
        grads = {dtype: self.documents.get(f"{prefix}grad_{dtype}") for dtype in DTYPES}
        return {dtype: d["shape"][1] for dtype, d in grads.items() if d}

    def _check(
        self, rows: Sequence[Row], prefix: str, documents: Mapping[str, Document]
    ) -> dict[str, Vector]:
        """Check all rows and return their columns: `present` and the coordinates."""
        row_widths = self._widths(prefix)
        weighty = any((prefix + "weight_" + dtype) in documents for dtype in row_widths)
        last = self._last(prefix)
        values = []
        for row in rows:
            check_row(row, row_widths, self.parameters)
            if (row.weights is not None) != weighty:
                fact = f"the stream {'has' if weighty else 'has no'} weights on its rows"
                raise ValueError(f"cannot append step {row.step}: {fact}; keep to that")
            values.append(coordinate_values(row, last[0] if last else 0))
            now = values[-1]
            segment, step, micro, point = (int(now[name]) for name in ORDERED)
            check_order(last, (segment, step, micro, point))
            last = segment, step, micro, point
        columns = {
            name: np.array([value[name] for value in values], dtype)
            for name, dtype in COORDINATES.items()
            if prefix + name in documents  # a store of before has fewer
        }
        return {"present": np.stack([np.asarray(row.present) for row in rows]), **columns}

    def _write_row(
        self, prefix: str, index: int, row: Row, documents: Mapping[str, Document]
    ) -> None:
        for quantity, flat in zip(QUANTITIES, (row.flat, row.weights), strict=True):
            for dtype, tensor in (flat or {}).items():
                key = f"{prefix}{quantity}_{dtype}"
                vector = as_bits(tensor.contiguous())
                if chunk_shape(documents[key])[0] == 1:
                    self._write_chunks(key, documents[key], f"c.{index}.{{}}", vector)
                elif len(vector):  # a chunk that rows share is a row's whole width
                    self._growing.write(key, documents[key], index, vector[np.newaxis])

    def _write_chunks(self, key: str, document: Document, name: str, vector: Vector) -> None:
        width = chunk_shape(document)[-1]
        for chunk, start in enumerate(range(0, len(vector), width)):
            piece = vector[start : start + width]
            padding = bytes((width - len(piece)) * piece.itemsize)  # Zarr's chunks are all full
            write_file(self.path / key / name.format(chunk), piece.data, padding)

    def _last(self, prefix: str) -> Order | None:
        row = stream_rows(self.documents, prefix) - 1
        if row < 0 or prefix in self._orders:
            return self._orders.get(prefix)
        keys = [prefix + name for name in ORDERED]
        values = [int(self._growing.read_last(key, self.documents[key])) for key in keys]
        segment, step, micro, point = values
        return segment, step, micro, point

    def _commit(self, documents: dict[str, Document]) -> None:
        group = group_document(self.attributes, documents)
        replace_file(self.path / "zarr.json", encode(group))
        old, self.documents = self.documents, documents
        self._behind |= {key for key, d in documents.items() if d is not old.get(key)}
        # one a column and commit would cost more than the commit
        if documents.keys() != old.keys() or time.monotonic() > self._copied + COPY_SECONDS:
            self._copy()

    def _copy(self) -> None:
        with contextlib.suppress(OSError):  # committed already: copies may lag until next time
            copy_metadata(self.path, self.documents, sorted(self._behind))
            self._behind.clear()
        self._copied = time.monotonic()


def _order(columns: Mapping[str, Vector], row: int) -> Order:
    segment, step, micro, point = (int(columns[name][row]) for name in ORDERED)
    return segment, step, micro, point
