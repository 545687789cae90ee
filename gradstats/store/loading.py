"""Loading the arrays of a stream, with errors that say what is lost with a damaged chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradstats.store.damage import bad_chunk, held_by
from gradstats.store.layout import PREFIXES, StoreFormatError
from gradstats.store.places import RESTORE, first_line
from gradstats.store.raw import read_raw

if TYPE_CHECKING:
    from gradstats.store.reading import Stream

Vector = np.ndarray[Any, Any]


def load(stream: Stream, name: str, *index: Any) -> Vector:
    """Load an array of a stream, or a part of it.

    Args:
        stream: the stream.
        name: the name of the array in its stream, such as "grad_float32".
        *index: a row or a slice for each leading dimension; the other dimensions are read whole.

    Raises:
        StoreFormatError: a chunk is missing or damaged.
    """
    try:
        return np.asarray(stream.arrays[name][index or ...])
    except (ValueError, RuntimeError) as error:  # of a StoreFormatError: a chunk is missing
        raise StoreFormatError(_damage(stream, name, index, error)) from error


def load_row(stream: Stream, name: str, row: int, elements: tuple[int, int]) -> Vector:
    """Load elements of one row of an array of vectors.

    Args:
        stream: the stream.
        name: the name of the array in its stream.
        row: the row.
        elements: the first element, and the one behind the last.

    Raises:
        StoreFormatError: a chunk is missing or damaged.
    """
    values = read_raw(stream.path / _key(stream, name), stream.arrays[name], row, elements)
    return load(stream, name, row, slice(*elements)) if values is None else values


def _key(stream: Stream, name: str) -> str:
    return f"worker_{stream.worker}/{PREFIXES[stream.kind]}{name}"


def _damage(stream: Stream, name: str, index: tuple[Any, ...], error: Exception) -> str:
    """Describe what could not be read: the parameters, the step, and the key of the chunk."""
    key = _key(stream, name)
    where = f"cannot read {stream.path}/{key}"
    damaged = bad_chunk(stream.path / key, stream.arrays[name], index)
    if damaged is None:
        return f"{where}: a chunk is damaged ({first_line(error)}); {RESTORE}"
    chunk, fact = damaged
    file = ".".join(["c", *map(str, chunk)])
    holds = held_by(stream, name, chunk, index)
    return f"{where}: {fact}; it holds {holds} (key {key}/{file}); {RESTORE}"
