"""Damaged chunks of an array, and the gradients that they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstats.store.layout import COORDINATES, DTYPES
from gradstats.store.parameters import Parameter
from gradstats.store.places import Place

if TYPE_CHECKING:
    from gradstats.store.reading import Stream

SHOWN = 5  # names in a message
RAGGED = ("indices_", "values_")


def bad_chunk(
    folder: Path | Place, array: Any, index: Sequence[int | slice]
) -> tuple[tuple[int, ...], str] | None:
    """Find the first missing or damaged chunk under an index.

    Returns:
        Its index and the fault in words; None if all chunks are whole.

    Args:
        folder: the folder of the array.
        array: the Zarr array.
        index: a row or a slice for each leading dimension; the other dimensions are read whole.
    """
    size = math.prod(array.chunks) * array.dtype.itemsize
    raw = len(array.metadata.codecs) == 1  # chunks of other writers may be compressed
    for chunk in _chunks(array.shape, array.chunks, index):
        file = folder / ".".join(["c", *map(str, chunk)])
        if not file.is_file():
            return chunk, f"chunk {file.name} is missing"
        actual = len(file.read_bytes())
        if raw and actual != size:
            return chunk, f"chunk {file.name} is damaged: it has {actual} of {size} bytes"
    return None


def _chunks(
    shape: Sequence[int], sizes: Sequence[int], index: Sequence[int | slice]
) -> Iterator[tuple[int, ...]]:
    ranges = []
    for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
        place = index[axis] if axis < len(index) else slice(None)
        if isinstance(place, slice):
            first, stop, _ = place.indices(length)
            ranges.append(range(first // size, -(-stop // size)))
        else:
            ranges.append(range(place // size, place // size + 1))
    return product(*ranges)


def held_by(
    stream: Stream, name: str, chunk: tuple[int, ...], index: Sequence[int | slice]
) -> str:
    """Name what is requested of a chunk: parameters, rows, and their steps if those can be read.

    Args:
        stream: the stream.
        name: the name of the array in its stream, such as "grad_float32".
        chunk: the index of the chunk.
        index: the requested index.
    """
    if name.startswith("element_ids_"):
        return "the places of tracked elements"
    array = stream.arrays[name]
    rows = _rows_named(stream, name, _meeting(array, chunk, index, axis=0))
    quantity, _, dtype = name.partition("_")
    if dtype in DTYPES:
        elements = _meeting(array, chunk, index, axis=1)
        what = _named(p for p in stream.parameters if p.dtype == dtype and _meets(p, elements))
        return f"{what} in {rows}" if what else rows
    place = dtype.partition("_")[0]
    if name.startswith(RAGGED) and place.isdecimal():
        return f"{quantity} of {stream.parameters[int(place)].name!r} in {rows}"
    return rows


def _rows_named(stream: Stream, name: str, rows: range) -> str:
    if name.endswith("_data"):  # of another length in every row
        ends = stream.ends(name.removesuffix("_data"))
        start, end = np.searchsorted(ends, [rows[0], rows[-1]], side="right")
        rows = range(int(start), int(end) + 1)
    text = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
    if name in COORDINATES:  # reading the steps may be what has failed
        return text
    first, last = (int(stream.steps[row]) for row in (rows[0], rows[-1]))
    return f"{text} (step {first})" if len(rows) == 1 else f"{text} (steps {first} to {last})"


def _meeting(array: Any, chunk: tuple[int, ...], index: Sequence[int | slice], axis: int) -> range:
    size, length = array.chunks[axis], array.shape[axis]
    first, stop = chunk[axis] * size, min((chunk[axis] + 1) * size, length)
    asked = index[axis] if axis < len(index) else slice(None)
    if isinstance(asked, slice):
        start, end, _ = asked.indices(length)
        return range(max(first, start), min(stop, end))
    return range(asked, asked + 1)


def _meets(p: Parameter, elements: range) -> bool:
    inside = p.offset < elements.stop and p.offset + p.numel > elements.start
    return inside and p.layout == "dense"


def _named(parameters: Iterator[Parameter]) -> str:
    names = [repr(p.name) for p in parameters]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
