"""Chunks that several rows share, in which an array grows row by row."""

import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from gradstats.store.files import begin_writeback, check_size, make_zeros, write_all
from gradstats.store.layout import Document, chunk_shape

Vector = np.ndarray[Any, Any]

#: So many files stay open per worker: a process may often have no more than 1,024.
FILES = 96


class Growing:
    """The arrays of a worker whose chunks hold many rows (or items), open to be extended.

    A chunk is a whole file from its first row on, full of zeros beyond its rows. Only the bytes of
    new rows are touched, so that a kill cannot harm the committed ones beside them.

    Args:
        path: the folder of the worker.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[str, tuple[int, IO[bytes]]] = {}  # the last chunk, by array
        self._full: list[IO[bytes]] = []  # the chunks before, which no row is added to

    def write(self, key: str, document: Document, start: int, values: Vector) -> None:
        """Write rows (or items) from `start` on.

        Args:
            key: the array.
            document: its metadata; the rows that it counts are committed.
            start: the first row.
            values: the rows, as the array stores them.

        Raises:
            StoreFormatError: a chunk with committed rows is missing or damaged.
            OSError: the disk is full; committed rows are as they were.
        """
        rows = chunk_shape(document)[0]
        stop = start + len(values)
        for chunk in range(start // rows, (stop - 1) // rows + 1 if stop > start else 0):
            first, last = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
            file = self._opened(key, document, chunk)
            file.seek((first - chunk * rows) * values[0].nbytes)
            write_all(file, values[first - start : last - start].data)

    def read_last(self, key: str, document: Document) -> Any:
        """Read the last committed value of a column."""
        chunk, place = divmod(document["shape"][0] - 1, chunk_shape(document)[0])
        file, dtype = self._chunk(key, document, chunk), np.dtype(document["data_type"])
        return np.fromfile(file, dtype, count=1, offset=dtype.itemsize * place)[0]

    def settle(self) -> None:
        """Let the system write full chunks to the disk: a commit would have to wait for that."""
        while self._full:
            with self._full.pop() as file:
                begin_writeback(file)

    def close(self) -> None:
        """Close the files; those that are written again are opened again."""
        self._full.extend(file for _, file in self._last.values())
        self._last.clear()
        self.settle()

    def _opened(self, key: str, document: Document, chunk: int) -> IO[bytes]:
        """The file of a chunk; it stays open, since opening costs much."""
        at, file = self._last.get(key, (-1, None))
        if file is None or at != chunk:
            if file is not None:
                self._full.append(self._last.pop(key)[1])
            elif len(self._last) == FILES:
                _, longest = self._last.pop(next(iter(self._last)))
                longest.close()
            file = open(self._chunk(key, document, chunk), "r+b", buffering=0)
            self._last[key] = chunk, file
        return file

    def _chunk(self, key: str, document: Document, chunk: int) -> Path:
        """The path of a chunk, made before its first row."""
        shape = chunk_shape(document)
        file = self._path / key / ".".join(["c", str(chunk), *["0"] * (len(shape) - 1)])
        nbytes = math.prod(shape) * np.dtype(document["data_type"]).itemsize
        if chunk * shape[0] < document["shape"][0]:
            check_size(file, nbytes)
        else:
            make_zeros(file, nbytes)
        return file
