"""A store that appears at its path when it is complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gradstats.store.addresses import as_place
from gradstats.store.gradient_store import GradientStore
from gradstats.store.parameters import Parameter
from gradstats.store.places import Place
from gradstats.store.refusals import writing
from gradstats.store.root import is_vacant, read_root


@contextmanager
def whole(
    path: str | os.PathLike[str] | Place,
    parameters: Sequence[Parameter],
    *,
    provenance: Mapping[str, Any],
    run: str | None = None,
    if_exists: str = "error",
) -> Iterator[GradientStore]:
    """Write a store beside its path and move it to the path when the block has ended.

    If the block raises, the path is as it was before. In an object store rows are written to their
    final address; if the block raises, they are removed, except after an error of the connection.

    Args:
        path: a folder or a URL.
        parameters: see `GradientStore.create`.
        provenance: see `GradientStore.create`.
        run: see `GradientStore.create`.
        if_exists: "error" or "overwrite".

    Raises:
        FileExistsError: something is at `path`.
        StoreFormatError: the path to overwrite is not a gradstats store.
        BlockingIOError: the store to overwrite is being written.
        OSError: the disk is full or read-only; the error names the path and the remedy.
    """
    place = as_place(path)
    check_place(place, if_exists)
    if not isinstance(place, Path):
        store = GradientStore.create(
            place, parameters, provenance=provenance, run=run, if_exists=if_exists
        )
        with _undone(store):
            yield store
        return
    with writing(place), ExitStack() as stack:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent)
        complete = Path(stack.enter_context(beside), "made.zarr")
        with GradientStore.create(complete, parameters, provenance=provenance, run=run) as store:
            yield store
        _move(complete, place, if_exists)


def check_place(place: Path | Place, if_exists: str = "error") -> None:
    """Check, before the work, that a store may be created at a path.

    Raises:
        ValueError: `if_exists` is neither error nor overwrite.
        FileExistsError: something is at the path.
        StoreFormatError: the path to overwrite is not a gradstats store.
    """
    if if_exists not in ("error", "overwrite"):
        raise ValueError(f"if_exists must be error or overwrite, got {if_exists!r}")
    if is_vacant(place):
        return
    if if_exists == "error":
        remedy = "if_exists='overwrite' (--if-exists overwrite) replaces it"
        raise FileExistsError(f"cannot create {place}: it exists; {remedy}")
    read_root(place)  # never delete what is not one


@contextmanager
def _undone(store: GradientStore) -> Iterator[None]:
    try:
        yield
    except OSError:  # rows that wait for a connection stay
        store.close()
        raise
    except BaseException:
        store.remove()
        raise
    store.close()


def _move(complete: Path, place: Path, if_exists: str) -> None:
    check_place(place, if_exists)  # again: the work took its time
    if is_vacant(place):
        shutil.rmtree(place, ignore_errors=True)
    else:
        GradientStore.open(place).check_idle()
        place.rename(complete.with_name("replaced.zarr"))  # goes with the folder that it is in
    complete.rename(place)
