"""Errors of a file system that takes no more: with the path, the fact and the remedy."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REMEDIES = {
    errno.ENOSPC: "free some space there, or write to another disk",
    errno.EDQUOT: "the quota is used up; free some space, or write to another disk",
    errno.ENOENT: "no folder can be made there; write to another folder",
    errno.ENOTDIR: "a part of the path is a file; write to another folder",
    errno.EROFS: "the file system is read-only; write to another folder",
    errno.ENOTDIR: "a file stands where a folder must be; write to another folder",
    errno.EACCES: "this user may not write there; write to another folder, or change its mode",
    errno.EPERM: "this user may not write there; write to another folder, or change its mode",
}


@contextmanager
def writing(place: Any) -> Iterator[None]:
    """Name the path and the remedy in an error of the file system.

    Args:
        place: What is written.

    Raises:
        OSError: Of the same class, with `cannot write PLACE: FACT; REMEDY`.
    """
    try:
        yield
    except OSError as error:
        has_its_words = len(error.args) < 2
        if error.errno not in REMEDIES or has_its_words or not _is_part(error.filename, place):
            raise
        named = type(error)(f"cannot write {place}: {fact_of(place, error)}")
        named.errno = error.errno
        raise named from error


def fact_of(place: Any, error: Exception) -> str:
    """What went wrong in a write, and the remedy where there is one.

    Args:
        place: What is written.
        error: What the write raised.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in REMEDIES:
        return f"{type(error).__name__}: {error}"
    free = ""
    if number == errno.ENOSPC and isinstance(place, Path):
        free = f" ({shutil.disk_usage(_nearest(place)).free:,} bytes are free)"
    return f"{os.strerror(number)}{free}; {REMEDIES[number]}"


def check_writable(place: Any) -> None:
    """Check, before the work, that a folder can be made at a path.

    Raises:
        OSError: It cannot; the error names the path and the remedy.
    """
    if isinstance(place, Path):
        above, prefix = _nearest(place.absolute()), f".{place.name}."
        with writing(place), tempfile.TemporaryDirectory(prefix=prefix, dir=above):
            pass


def _nearest(path: Path) -> Path:
    """The folder at the path, or the nearest one above it that there is."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def _is_part(name: Any, place: Any) -> bool:
    """Whether a file belongs to what is written: it is not one that is read meanwhile."""
    if name is None or not isinstance(place, Path):
        return True
    file, whole = Path(os.fsdecode(name)).absolute(), place.absolute()
    if file in (whole, *whole.parents):
        return True
    names = (whole.name, f".{whole.name}.")
    return any(part == names[0] or part.startswith(names[1]) for part in file.parts)
