"""The workers' groups of a store: which are there, and whether a commit wrote them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from gradstats.store.layout import (
    PREFIXES,
    Document,
    StoreFormatError,
    has_rows,
    in_stream,
    stream_rows,
)
from gradstats.store.objects import InObjects
from gradstats.store.places import Place


def worker_ids(path: Path | Place, run: str | None = None) -> tuple[int, ...]:
    """List the workers that have a group, in order.

    Args:
        path: the store.
        run: the name of the run; groups that a late writer of another run began in an object store
            are left out.

    Raises:
        StoreFormatError: a worker has arrays and no metadata.
    """
    numbers = []
    for number, folder in worker_folders(path):
        group = folder / "zarr.json"
        if not group.is_file():
            arrays = any((child / "zarr.json").is_file() for child in folder.iterdir())
            # a new worker writes the group before any array
            if arrays and not group.is_file():
                fact = f"{folder.name} is truncated (arrays, but no zarr.json)"
                raise StoreFormatError(f"cannot open {path}: {fact}; restore it from a copy")
        if group.is_file():
            numbers.append(number)
    if isinstance(path, InObjects) and run is not None:
        groups = {number: parsed(path / f"worker_{number}" / "zarr.json") for number in numbers}
        numbers = [n for n, group in groups.items() if _attributes(group).get("run", run) == run]
    return tuple(sorted(numbers))


def worker_folders(path: Path | Place) -> Iterator[tuple[int, Path | Place]]:
    """Iterate over (number, folder) of what may be workers."""
    if not path.is_dir():
        return
    for folder in path.iterdir():
        number = folder.name.removeprefix("worker_")
        if folder.name != number and number.isdecimal() and folder.is_dir():
            yield int(number), folder


def check_worker(path: Path | Place, worker: int) -> None:
    """Check that a worker's zarr.json is one that a commit wrote.

    Raises:
        StoreFormatError: it does not parse, or arrays of one stream differ in length.
    """
    file = path / f"worker_{worker}" / "zarr.json"
    documents = parsed(file).get("consolidated_metadata", {}).get("metadata")
    if documents is None:
        raise StoreFormatError(f"cannot open {path}: {file} lacks its consolidated metadata")
    try:
        _check_lengths(path, documents)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        fact = f"the metadata of an array in {file} is damaged ({error!r})"
        raise StoreFormatError(f"cannot open {path}: {fact}; restore it from a copy") from error


def _check_lengths(path: Path | Place, documents: Mapping[str, Document]) -> None:
    for prefix in PREFIXES.values():
        rows = stream_rows(documents, prefix)
        for key, document in documents.items():
            grows = in_stream(key, prefix) and has_rows(document)
            if grows and document["shape"][0] != rows:
                fact = f"{key} has {document['shape'][0]} rows where step has {rows}"
                raise StoreFormatError(f"cannot open {path}: {fact}; restore it from a copy")


def _attributes(group: Document) -> Document:
    attributes: Document = group.get("attributes", {})
    return attributes


def parsed(file: Path | Place) -> Document:
    """Read a zarr.json.

    Raises:
        StoreFormatError: it is not JSON.
    """
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        fact = f"it is not JSON ({error})"
        raise StoreFormatError(f"cannot read {file}: {fact}; restore it from a copy") from error
    return document if isinstance(document, dict) else {}
