"""Raw chunks in a folder, read without Zarr: only the bytes of the row that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gradstats.store.places import Place

Vector = np.ndarray[Any, Any]


def read_raw(
    folder: Path | Place, array: Any, row: int, elements: tuple[int, int]
) -> Vector | None:
    """Read elements of one row of an array of vectors, whose chunks may hold many rows.

    Args:
        folder: the folder of the array.
        array: the Zarr array.
        row: the row.
        elements: the first element, and the one behind the last.

    Returns:
        The elements as stored; None if Zarr has to read them: the array is not in a folder, its
        chunks are encoded, or one of them is missing or damaged, which Zarr then reports.
    """
    if not isinstance(folder, Path) or not _is_raw(array):
        return None
    (rows, width), (start, stop) = array.chunks, elements
    values = np.empty(stop - start, array.dtype)
    for column in range(start // width, -(-stop // width)):
        first, last = max(start, column * width), min(stop, (column + 1) * width)
        file = folder / array.metadata.encode_chunk_key((row // rows, column))
        offset = (row % rows * width + first - column * width) * values.itemsize
        part = values[first - start : last - start]
        if not _read_into(part, file, offset, rows * width * values.itemsize):
            return None
    return values


def _is_raw(array: Any) -> bool:
    codecs = [codec.to_dict() for codec in array.metadata.codecs]
    return len(codecs) == 1 and codecs[0] in (
        {"name": "bytes"},
        {"name": "bytes", "configuration": {"endian": "little"}},
    )


def _read_into(part: Vector, path: Path, offset: int, nbytes: int) -> bool:
    """Read a part of a file of this size; False if the file is not as it should be."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            is_whole = os.fstat(file.fileno()).st_size == nbytes
            return is_whole and file.readinto(part.data) == part.nbytes
    except OSError:
        return False
