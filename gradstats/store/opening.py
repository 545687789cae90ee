"""Opening the stream of a worker, by the documents in its zarr.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradstats.store.layout import PREFIXES, StoreFormatError, in_stream
from gradstats.store.parameters import Parameter, table_from_json, widths
from gradstats.store.places import Place
from gradstats.store.reading import Stream

if TYPE_CHECKING:
    import zarr

_NAMED = {"track": "tracked", "summary": "summary", "shadow": "shadow"}


def open_stream(
    path: Path | Place, worker: int, kind: str, table: tuple[Parameter, ...]
) -> Stream:
    """Open the committed rows of one worker.

    Raises:
        LookupError: nothing is tracked.
        StoreFormatError: the worker's zarr.json was not written by a commit.
    """
    group, members = _opened(path, worker)
    if kind != "full" and kind not in group:
        fact = f"worker {worker} of {path} tracks no elements"
        if kind != "track":
            fact = f"worker {worker} of {path} has none"
        raise LookupError(f"cannot open the {_NAMED[kind]} rows: {fact}; read kind='full'")
    prefix = PREFIXES[kind]  # the worker's zarr.json holds the track's metadata too
    arrays = {
        key.removeprefix(prefix): array for key, array in members.items() if in_stream(key, prefix)
    }
    own: Any = group.attrs.get("parameters", ())
    stream = Stream(path, worker, kind, table_from_json(own) or table, arrays)
    _check_arrays(stream)
    return stream


def _opened(path: Path | Place, worker: int) -> tuple[zarr.Group, dict[str, Any]]:
    """Open a worker's group and return its arrays."""
    import zarr  # which takes 0.2 s: at the first look into a store

    from gradstats.store.zarr_stores import zarr_store

    try:
        group = zarr.open_group(
            store=zarr_store(path), path=f"worker_{worker}", mode="r", zarr_format=3
        )
        members = group.members(max_depth=None)
        return group, {key: each for key, each in members if isinstance(each, zarr.Array)}
    except Exception as error:  # Zarr has many for what it does not understand
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        fact = f"its metadata cannot be read by Zarr ({type(error).__name__}: {error})"
        raise StoreFormatError(
            f"cannot read {path}/worker_{worker}/zarr.json: {fact}; restore it from a copy"
        ) from error


def _check_arrays(stream: Stream) -> None:
    """Check that a stream with rows has the arrays that its table promises, and as wide."""
    if not len(stream):
        return
    needed: dict[str, int] = {"present": len(stream.table)}
    if stream.kind == "full":
        needed |= {f"grad_{dtype}": width for dtype, width in widths(stream.table).items()}
    for name, width in needed.items():
        array = stream.arrays.get(name)
        if array is None or array.shape[1] != width:
            fault = f"has {array.shape[1]}" if array is not None else "is not there"
            fact = f"{name} {fault} where the parameter table has {width} columns"
            where = f"{stream.path}/worker_{stream.worker}"
            raise StoreFormatError(f"cannot read {where}: {fact}; restore it from a copy")
