"""The folder in which rows wait for their object store: one per store and machine.

Many processes of a machine create it, write in it and remove it at any moment, each under its
lock.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gradstats.store.files import held, lock_files, replace_file, take_lock
from gradstats.store.objects import REPLACED, Conflict, InObjects

_ADDRESS = "sent-to"  # the file in a spool that says where its rows go


def spool_folder(place: InObjects) -> Path:
    """Return the folder of rows to be sent: below `GRADSTATS_SPOOL` or the temporary folder."""
    user = f"gradstats-{os.getuid() if hasattr(os, 'getuid') else 'spool'}"
    base = os.environ.get("GRADSTATS_SPOOL") or Path(tempfile.gettempdir(), user)
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    return Path(base, f"{place.name}-{digest}")


def spool_lock(place: InObjects) -> AbstractContextManager[None]:
    """Keep other processes of this machine from creating or removing the folder."""
    folder = spool_folder(place)
    return held(folder.with_name(f"{folder.name}.lock"))


def make_spool(place: InObjects, root: bytes) -> Path:
    """Create the folder: a store by itself, without the rows that have arrived.

    Rows of another run, which was replaced since, are removed from it.

    Raises:
        Conflict: the run of this root itself has been replaced.
        BlockingIOError: another run still writes in the folder.
        OSError: the object store does not answer.
    """
    with spool_lock(place):
        return settled(place, root)


def settled(place: InObjects, root: bytes) -> Path:
    """Do the same as `make_spool`, for a caller that holds the lock."""
    check_run(place, root)
    folder, run = spool_folder(place), run_of(root)
    file = folder / "zarr.json"
    if folder.exists() and not (file.is_file() and run_of(file.read_bytes()) == run):
        remove_spool(place)
    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or json.loads(root)["attributes"]["parameters"]:
        replace_file(file, root)
    replace_file(folder / _ADDRESS, str(place).encode())
    return folder


def check_run(place: InObjects, root: bytes) -> None:
    """Check that the store in the object store still belongs to the run of this root.

    Raises:
        Conflict: it has been replaced.
        OSError: the object store does not answer.
    """
    try:
        stored = run_of((place / "zarr.json").read_bytes())
    except FileNotFoundError:
        stored = None
    if stored != run_of(root):
        raise Conflict(f"cannot write {place}: {REPLACED}")


def remove_spool(place: InObjects) -> None:
    """Remove the folder, whose lock is held, with all that was not sent.

    Raises:
        BlockingIOError: a process writes in it.
    """
    folder = spool_folder(place)
    locks = [take_lock(lock, str(place)) for lock in lock_files(folder)]
    discard(folder)
    for lock in locks:
        lock.close()


def leave_spool(place: InObjects) -> None:
    """Remove the folder, unless a worker still has rows or a writer in it."""
    folder = spool_folder(place)
    with contextlib.suppress(OSError), spool_lock(place):
        if not any(child.name.startswith("worker_") for child in folder.iterdir()):
            discard(folder)


def address(folder: Path) -> str | None:
    """Return the address to which the rows of a spool go; None for any other folder."""
    file = folder / _ADDRESS
    return file.read_text() if file.is_file() else None


def discard(folder: Path) -> None:
    """Remove a folder; a process killed meanwhile leaves nothing that looks like a spool."""
    gone = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def run_of(root: bytes) -> Any:
    """Return the run of a root.

    A root of an earlier version has no name, and its provenance stands for it.
    """
    attributes = json.loads(root)["attributes"]
    return attributes.get("run") or attributes["provenance"]
