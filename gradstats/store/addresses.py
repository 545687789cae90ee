"""Addresses of stores: a path, a zip file or a URL, as a user writes it."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from gradstats.store.places import InZip, Place


def as_place(path: str | os.PathLike[str] | Place) -> Path | Place:
    """Convert what a user passed as a path: a URL, a zip file (to read) or a folder.

    Raises:
        TypeError: `path` is no path.
        ImportError: `path` is a URL, and obstore is not installed.
        ValueError: no object store has such URLs.

    Example:
        >>> as_place("run.zarr").name
        'run.zarr'
    """
    if isinstance(path, Place):
        return path
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path or a URL, got {path!r}")
    text = os.fspath(path)
    if text.startswith("file:/"):
        return Path("/" + text.removeprefix("file:").lstrip("/"))
    if is_url(text):
        from gradstats.store.objects import InObjects

        return InObjects(restored(text))
    if text.endswith(".zip") and zipfile.is_zipfile(text):
        return InZip(text)
    return Path(text)


def beside(place: Path | Place, name: str) -> Path | Place:
    """Return the path of another name in the same folder.

    Example:
        >>> beside(Path("a/run.zarr"), "run-2.zarr").as_posix()
        'a/run-2.zarr'
    """
    if isinstance(place, Path):
        return place.with_name(name)
    return as_place(f"{str(place).rpartition('/')[0]}/{name}")


def is_url(path: object) -> bool:
    """Return whether a user's path is a URL of an object store."""
    return re.match(r"[a-z][a-z0-9]+:/", str(path)) is not None


def restored(path: object) -> str:
    """Write a user's path as text; restores the slash that a URL loses as a `Path`.

    Example:
        >>> restored("s3:/bucket/run.zarr"), restored("run.zarr")
        ('s3://bucket/run.zarr', 'run.zarr')
    """
    return re.sub(r"^([a-z][a-z0-9]+):/+", r"\1://", str(path))
