"""Damaged chunks of an array, and the gradients that they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gradstats.store.layout import DTYPES
from gradstats.store.parameters import Parameter
from gradstats.store.places import Place

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
    name: str,
    array: Any,
    chunk: tuple[int, ...],
    index: Sequence[int | slice],
    parameters: Sequence[Parameter],
) -> str:
    """Name the requested parameters whose elements a chunk holds.

    Args:
        name: the name of the array in its stream, such as "grad_float32".
        array: the Zarr array.
        chunk: the index of the chunk.
        index: the requested index.
        parameters: the table of the vectors of the stream.
    """
    quantity, _, dtype = name.partition("_")
    if dtype in DTYPES:
        elements = _meeting(array, chunk, index, axis=1)
        return _named(p for p in parameters if p.dtype == dtype and _meets(p, elements))
    if name.startswith(RAGGED) and dtype.partition("_")[0].isdecimal():
        return f"{quantity} of {parameters[int(dtype.partition('_')[0])].name!r}"
    return "the places of tracked elements" if name.startswith("element_ids_") else ""


def rows_of(array: Any, chunk: tuple[int, ...], index: Sequence[int | slice]) -> range:
    """Return the requested rows, or items, of a chunk."""
    return _meeting(array, chunk, index, axis=0)


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
