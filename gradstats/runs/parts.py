"""Work in progress on disk: parts of tables that take long, and files that are whole or absent."""

from __future__ import annotations

import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLUSH_SECONDS = 10.0  # of work that a killed process may lose
MOST_SHARE = 0.1  # of the time, for writing parts
CHECKSUM_BYTES = 4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes the path that it gets.

    Raises:
        OSError: it cannot be written; the error names the folder and the remedy.
    """
    new = path.with_suffix(".new")
    with writing(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield new
            os.replace(new, path)
        except BaseException:
            _remove(new)
            raise


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # it could not be written either, which is the error to report
        return


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Name the folder and the remedy if nothing can be written to it.

    Raises:
        OSError: of the same class as the error inside.
    """
    try:
        yield
    except OSError as error:
        fact = error.strerror or str(error)
        remedy = "choose another folder with --out, folder= or out= in Python, or make room in it"
        text = f"cannot write results to {folder}: {fact}; {remedy}"
        named = type(error)(text)
        named.errno = error.errno
        raise named from error


@contextmanager
def noting(text: str) -> Iterator[None]:
    """Add a note to an interrupt inside: what is kept, and what continues."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(text)
        raise


class Pace:
    """When to write parts: after every 10 s of work, less often if writing takes long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FLUSH_SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._next

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write inside the block; the next time is reckoned from its end and its duration."""
        begin = time.monotonic()
        yield
        now = time.monotonic()
        self._next = now + max(FLUSH_SECONDS, (now - begin) / MOST_SHARE)


def write_part(path: Path, value: Any) -> None:
    """Write a tree of dictionaries, lists, numbers, text, arrays and tensors.

    The file holds a CRC-32, JSON (floats come back bit for bit), and the tensors.
    """
    tensors: list[Tensor] = []

    def encode(leaf: Any) -> Any:
        if isinstance(leaf, np.generic):
            return leaf.item()
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biuf":
            return leaf.tolist()
        tensors.append(leaf if isinstance(leaf, Tensor) else torch.from_numpy(leaf.copy()))
        return {"tensor": len(tensors) - 1, "array": isinstance(leaf, np.ndarray)}

    content = io.BytesIO()
    torch.save([json.dumps(value, default=encode), tensors], content)
    data = content.getbuffer()
    with replacing(path) as new, new.open("wb") as file:
        file.write(zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little"))
        file.write(data)


def read_part(path: Path) -> Any:
    """Read what `write_part` has written; None if the file is absent or damaged."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    checksum, content = data[:CHECKSUM_BYTES], data[CHECKSUM_BYTES:]
    if zlib.crc32(content) != int.from_bytes(checksum, "little") or not len(content):
        return None
    text, tensors = torch.load(io.BytesIO(content), weights_only=True)

    def decode(leaf: dict[str, Any]) -> Any:
        if leaf.keys() != {"tensor", "array"}:
            return leaf
        tensor = tensors[leaf["tensor"]]
        return tensor.numpy() if leaf["array"] else tensor

    return json.loads(text, object_hook=decode)


@dataclass
class Parts:
    """The items of a table that are done, in order; each file holds those of some seconds.

    A file is named by the items in it, START-STOP. What follows a missing or damaged one is
    removed, and made again.

    Attributes:
        folder: for these parts alone.
        files: in order.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*-*.part")):
            start = int(path.stem.split("-")[0])
            if start == self.done and read_part(path) is not None:
                self.files.append(path)
            else:
                path.unlink()

    @property
    def done(self) -> int:
        """The number of items in the files."""
        return int(self.files[-1].stem.split("-")[1]) if self.files else 0

    def add(self, content: Any, items: int) -> None:
        """Write what the next items came to."""
        stop = self.done + items
        path = self.folder / f"{self.done:09d}-{stop:09d}.part"
        write_part(path, content)
        self.files.append(path)

    def contents(self) -> Iterator[Any]:
        """What each file holds, one in memory at a time."""
        return map(read_part, self.files)


Items = Callable[[int], Iterator[Any]]  # called with the number of items to leave out
Collect = Callable[[Items], list[Any]]


def at_once(make: Items) -> list[Any]:
    """Make all items, and keep nothing of them."""
    return list(make(0))


def resumed(parts: Parts, make: Items) -> list[Any]:
    """Make the items of a table, but for those that an earlier call has kept.

    They are written every 10 s, and when the work ends, by an interrupt or an error too.

    Args:
        parts: of this table.
        make: called with the number of items to leave out; yields one value per item.

    Returns:
        What the items came to, read from the parts.
    """
    first, pace = parts.done, Pace()
    values: list[Any] = []

    def flush() -> None:
        new = values[parts.done - first :]
        if new:
            parts.add(new, len(new))

    try:
        for value in make(first):
            values.append(value)
            if pace.due:
                with pace.kept():
                    flush()
    finally:
        flush()
    return [value for content in parts.contents() for value in content]
