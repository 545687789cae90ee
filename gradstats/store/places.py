"""Where a store lies that is no folder: in a zip file or an object store; read like a `Path`."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Place(ABC):
    """A place below `root` that is not on disk: read like a `Path`.

    Args:
        root: what the user named: a URL or a zip file.
        key: the place below it, with slashes; "" is the root.
        content: what is read there: a client of the object store or the open zip file.
    """

    def __init__(self, root: str, key: str = "", content: Any = None) -> None:
        self.root, self.key = root.rstrip("/"), key
        self.content = self._connected() if content is None else content

    def __truediv__(self, key: str | os.PathLike[str]) -> Self:
        return type(self)(self.root, f"{self.key}/{os.fspath(key)}".strip("/"), self.content)

    def __str__(self) -> str:
        return f"{self.root}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.key)  # connects anew where it arrives

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    def exists(self) -> bool:
        """Is there anything, here or below?"""
        return self.is_file() or any(True for _ in self.iterdir())

    def is_dir(self) -> bool:
        """Is there anything below?"""
        return any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator[Self]:
        """Iterate over what is right below."""
        for name in sorted(self._below()):
            yield self / name

    @abstractmethod
    def _connected(self) -> Any:
        """Open what is read."""

    @abstractmethod
    def _below(self) -> set[str]:
        """The names right below."""

    @abstractmethod
    def is_file(self) -> bool:
        """Is there a file or object of this very name?"""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """All of it.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def size(self) -> int:
        """Bytes of all that is here and below."""

    @abstractmethod
    def zarr_store(self) -> Store:
        """The root as Zarr reads it."""


class InZip(Place):
    """An address in a zip file, such as `run.zarr.zip`; read only."""

    def _connected(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.root)

    def _below(self) -> set[str]:
        start = f"{self.key}/" if self.key else ""
        names = (name for name in self.content.namelist() if name.startswith(start))
        return {name.removeprefix(start).partition("/")[0] for name in names} - {""}

    def is_file(self) -> bool:
        """Is there a file of this very name?"""
        return self.key in self.content.NameToInfo

    def read_bytes(self) -> bytes:
        """All of the file."""
        if not self.is_file():
            raise FileNotFoundError(f"nothing is at {self}")
        return bytes(self.content.read(self.key))

    def size(self) -> int:
        """Bytes of the zip file."""
        return Path(self.root).stat().st_size

    def zarr_store(self) -> Store:
        """The zip file as Zarr reads it."""
        from zarr.storage import ZipStore  # see opening.py

        return ZipStore(Path(self.root), mode="r")


RESTORE = "restore the store from a copy, or read other rows"


def first_line(error: BaseException) -> str:
    """Return the first line of an error; some add pages."""
    return next(iter(str(error).splitlines()), type(error).__name__)
