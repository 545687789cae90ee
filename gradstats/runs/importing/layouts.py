"""The parameters of all files together: checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradstats.runs.importing.entries import MOST_NAMED
from gradstats.runs.importing.formats import Content, Named
from gradstats.store import Parameter, parameter_table
from gradstats.store.parameters import dtype_name

ABSENT = "NoneType"  # what a parameter without a gradient is saved as


@dataclass(frozen=True)
class Entry:
    """A parameter, with shape and dtype of the first file that has it."""

    shape: tuple[int, ...]
    dtype: str
    source: str


class Layouts:
    """The parameters of the files seen so far, and what was left out of them.

    Args:
        rows: the first axis of every array counts the steps.
    """

    def __init__(self, rows: bool) -> None:
        self._rows = rows
        self._entries: dict[str, Entry] = {}
        self._lacking: dict[str, list[str]] = {}  # by parameter, the files without it
        self._left_out: dict[str, tuple[str, str]] = {}  # by name, what it is and in which file
        self._remarks: dict[str, None] = {}
        self._sources: list[str] = []

    def add(self, source: str, content: Content) -> int:
        """Add one file and count its rows.

        Raises:
            ValueError: it does not fit the files before it.
        """
        shapes = {name: tuple(array.shape) for name, array in content.arrays.items()}
        count = _length(source, shapes) if self._rows else 1
        if self._entries and not self._entries.keys() & shapes.keys():
            odd = ", ".join(sorted(shapes.keys() ^ self._entries.keys())[:MOST_NAMED])
            fact = f"its names differ from those of {self._sources[0]}: {odd}"
            raise ValueError(f"cannot import {source}: {fact}")
        for name, array in content.arrays.items():
            self._fit(source, name, shapes[name][self._rows :], _dtype(source, name, array.dtype))
        for name in self._entries.keys() - shapes.keys():
            self._lacking[name].append(source)
        for name, kind in content.left_out.items():
            self._left_out.setdefault(name, (kind, source))
            if kind != ABSENT:
                self._left_out[name] = (kind, source)
        self._remarks |= dict.fromkeys(content.remarks)
        self._sources.append(source)
        return count

    def _fit(self, source: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if name not in self._entries:
            self._entries[name] = Entry(shape, dtype, source)
            self._lacking[name] = list(self._sources)
        first = self._entries[name]
        if (shape, dtype) != (first.shape, first.dtype):
            rule = f"{name!r} must be {first.dtype} {list(first.shape)}"
            fact = f"as {first.source} has it"
            raise ValueError(f"cannot import {source}: {rule}, got {dtype} {list(shape)}; {fact}")

    def table(self) -> tuple[Parameter, ...]:
        """The parameters of the store.

        Raises:
            ValueError: an entry is a gradient in one file and not in another.
        """
        for name in self._entries.keys() & self._left_out.keys():
            kind, source = self._left_out[name]
            if kind != ABSENT:
                rule = f"{name!r} must be {self._entries[name].dtype} in every file"
                raise ValueError(f"cannot import {source}: {rule}, got {kind!r}")
        return parameter_table((n, each.shape, each.dtype) for n, each in self._entries.items())

    def lines(self) -> Iterator[str]:
        """List what to print: entries that are left out, and absent parameters."""
        others = {n: kind for n, (kind, _) in self._left_out.items() if n not in self._entries}
        if others:
            shown = ", ".join(f"{name} ({kind})" for name, kind in others.items())
            yield f"left out, no floating-point gradients: {shown}"
        yield from self._remarks
        for name, sources in self._lacking.items():
            if sources:
                where = f"{len(sources)} of {len(self._sources)} files, {sources[0]} first"
                yield f"no gradient of {name!r} in {where}: that is recorded, it is not zero"


def _length(source: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """Count the rows of one file, whose arrays count steps in their first axis."""
    scalars = [name for name, shape in shapes.items() if not shape]
    lengths = {shape[0] for shape in shapes.values() if shape}
    if scalars or len(lengths) != 1 or not min(lengths):
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        rule = "with --rows every array must have one row per step"
        raise ValueError(f"cannot import {source}: {rule}, got {shown}")
    return lengths.pop()


def _dtype(source: str, name: str, dtype: object) -> str:
    try:
        return dtype_name(getattr(dtype, "name", dtype))
    except ValueError as error:
        raise ValueError(f"cannot import {source}: {name!r}: {error}") from error


def rows_of(grads: Named, rows: bool) -> Iterator[Named]:
    """The gradients of each row of a file."""
    if not rows:
        yield grads
        return
    for row in range(min(len(array) for array in grads.values())):
        # an element of a 1-D array is a number, and its row a gradient without axes
        yield {name: array[row, ...] for name, array in grads.items()}
