"""The root group: it makes a folder a gradstats store, and shows whether the store is damaged."""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from gradstats.store.files import held, lock_files, replace_file, take_lock
from gradstats.store.groups import parsed, worker_folders
from gradstats.store.layout import (
    FEATURES,
    FORMAT,
    FORMAT_VERSION,
    Document,
    StoreFormatError,
    encode,
    group_document,
)
from gradstats.store.objects import REPLACED, Conflict, InObjects
from gradstats.store.parameters import Parameter, table_from_json, table_to_json
from gradstats.store.places import Place
from gradstats.store.spool_folder import remove_spool, spool_lock

_MAKING = "making.partial"  # a lock, which a kill may leave


def root_bytes(
    table: Iterable[Parameter], provenance: Mapping[str, Any], run: str | None
) -> bytes:
    """Return the zarr.json that makes a folder a store.

    Args:
        table: the parameters.
        provenance: where the gradients come from.
        run: the name of the run; None if it has none.
    """
    attributes: Document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "features": list(FEATURES),
        "parameters": table_to_json(table),
        "provenance": dict(provenance),
    }
    if run is not None:
        attributes["run"] = run
    return encode(group_document(attributes))


def read_root(path: Path | Place) -> Document:
    """Read the root attributes.

    Raises:
        StoreFormatError: nothing is at the path, or no gradstats store, a newer one, or a damaged
            one.
    """
    file = path / "zarr.json"
    if not file.is_file():
        if not path.exists():
            raise StoreFormatError(f"cannot open {path}: nothing is there; check the path")
        results = (path / "settings.json").is_file()
        fact = "the results of a run; give the run" if results else "no zarr.json"
        fact = f"it is not a gradstats store ({fact})"
        if any(worker_folders(path)):
            fact = "it is truncated (workers, but no zarr.json); restore it from a copy"
        raise StoreFormatError(f"cannot open {path}: {fact}")
    attributes: Document = parsed(file).get("attributes", {})
    if attributes.get("format") != FORMAT:
        fact = f"it is not a gradstats store (its format is {attributes.get('format', 'unnamed')})"
        raise StoreFormatError(f"cannot open {path}: {fact}")
    version = attributes.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        fact = f"format_version {version!r} is newer than {FORMAT_VERSION}"
        raise StoreFormatError(f"cannot open {path}: {fact}; upgrade gradstats")
    missing = {"features", "parameters", "provenance"} - set(attributes)
    if missing:
        raise StoreFormatError(f"cannot open {path}: its zarr.json lacks {sorted(missing)}")
    try:
        table_from_json(attributes["parameters"]), tuple(attributes["features"])
    except (KeyError, TypeError) as error:
        fact = f"the parameter table in its zarr.json is damaged ({error!r})"
        raise StoreFormatError(f"cannot open {path}: {fact}; restore it from a copy") from error
    return attributes


def make_root(path: Path | Place, root: bytes, if_exists: str) -> bool:
    """Make `path` a store without rows, unless there is one to resume.

    Returns:
        Whether the store is new.

    Raises:
        ValueError: `if_exists` is neither error, resume nor overwrite.
        FileExistsError: something is at `path`.
        StoreFormatError: the path to overwrite is not a gradstats store.
        BlockingIOError: the store to overwrite is being written.
    """
    if if_exists not in ("error", "resume", "overwrite"):
        raise ValueError(f"if_exists must be error, resume or overwrite, got {if_exists!r}")
    if not _is_to_be_made(path, if_exists):
        return False
    if not is_vacant(path):
        read_root(path)  # never delete what is not one
    with _making(path):
        if not _is_to_be_made(path, if_exists):  # another process was faster
            return False
        if not is_vacant(path):
            _clear(path)
        if not isinstance(path, InObjects):
            put_root(path, root)
            return True
        remove_spool(path)  # rows of a run that is not there any more
        if if_exists == "overwrite":
            put_root(path, root)
            return True
        try:
            (path / "zarr.json").put_over(root, None)
        except Conflict:  # another machine was faster
            return _is_to_be_made(path, if_exists)
    return True


def _is_to_be_made(path: Path | Place, if_exists: str) -> bool:
    if is_vacant(path) or if_exists == "overwrite":
        return True
    if if_exists == "resume":
        return False
    remedy = "if_exists='resume' adds to it, if_exists='overwrite' deletes it"
    raise FileExistsError(f"cannot create {path}: it exists; {remedy}")


def _making(path: Path | Place) -> AbstractContextManager[None]:
    """Keep other processes of this machine from creating the same store while the block runs."""
    if isinstance(path, InObjects):
        return spool_lock(path)
    return held(path / _MAKING) if isinstance(path, Path) else nullcontext()


def change_root(path: Path | Place, run: str | None, make: Callable[[Document], bytes]) -> None:
    """Replace the root of this run's store, unless the store was replaced or its root changed.

    Args:
        path: the store.
        run: the name of the run.
        make: computes the new root from the attributes of the present one; b"" leaves it as it is.

    Raises:
        Conflict: the store was replaced, or its root changed.
    """
    file = path / "zarr.json"
    tag = file.tag() if isinstance(file, InObjects) else None
    attributes = read_root(path)
    if attributes.get("run") != run:
        raise Conflict(f"cannot write {path}: {REPLACED}")
    root = make(attributes)
    if root:
        put_root(path, root, tag)


def adopted(
    path: Path | Place,
    run: str | None,
    provenance: Mapping[str, Any],
    table: Sequence[Parameter],
) -> tuple[Parameter, ...]:
    """Give a store a table if it has none, and return the table that it has now."""

    def root(attributes: Document) -> bytes:
        return b"" if attributes["parameters"] else root_bytes(table, provenance, run)

    with contextlib.suppress(Conflict):  # a worker on another machine: look again
        change_root(path, run, root)
    change_root(path, run, root)
    return table_from_json(read_root(path)["parameters"])


def put_root(path: Path | Place, root: bytes, tag: str | None = None) -> None:
    """Make `path` a store, or replace the root of the store at `path`.

    Args:
        path: the folder or URL.
        root: its zarr.json.
        tag: in an object store, the tag of the root that may be replaced; None replaces any.

    Raises:
        ValueError: `path` is in a zip file.
        Conflict: the object store has another root.
    """
    if isinstance(path, Path):
        replace_file(path / "zarr.json", root)
    elif isinstance(path, InObjects) and tag is not None:
        (path / "zarr.json").put_over(root, tag)
    elif isinstance(path, InObjects):
        (path / "zarr.json").put(root)
    else:
        raise ValueError(f"cannot write {path}: zip files are read only; write to a folder")


def is_vacant(path: Path | Place) -> bool:
    """Return whether `path` is empty, or a folder in which a `create` was killed."""
    return not path.exists() or (
        path.is_dir() and all(child.name.endswith(".partial") for child in path.iterdir())
    )


def _clear(path: Path | Place) -> None:
    """Delete the content of a store.

    The root's zarr.json stays, so that it is a store throughout.
    """
    if isinstance(path, InObjects):
        remove_spool(path)
        path.delete_below(kept="zarr.json")
    if not isinstance(path, Path):
        return
    locks = [take_lock(lock, str(path)) for lock in lock_files(path)]
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name not in ("zarr.json", _MAKING):
            child.unlink()
    for lock in locks:
        lock.close()


def remove_root(path: Place) -> None:
    """Delete from an object store a store that nobody writes.

    Raises:
        ValueError: `path` is in a zip file.
    """
    if not isinstance(path, InObjects):
        raise ValueError(f"cannot delete {path}: zip files are read only")
    path.delete_below(kept="")
