"""Reading one stream of committed rows, lazily, by Zarr.

Only five modules of gradstats import zarr: this one, opening.py, places.py, objects.py and
zarr_stores.py, none of them before a store is looked into.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstats.store.damage import bad_chunk, held_by, rows_of
from gradstats.store.layout import (
    BLOBS,
    COORDINATES,
    DTYPES,
    POINTS,
    PREFIXES,
    QUANTITIES,
    UNKNOWN,
    StoreFormatError,
)
from gradstats.store.parameters import Parameter, widths
from gradstats.store.places import RESTORE, Place, first_line
from gradstats.store.raw import read_raw
from gradstats.store.rows import as_values

if TYPE_CHECKING:
    import zarr

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of one worker and kind that were committed when it was opened.

    Each is read on request.

    Attributes:
        path: the store.
        worker: the data-parallel worker.
        kind: `"full"` for whole gradients, `"track"` for the same sampled elements at every step,
            `"summary"` and `"shadow"` for bytes (`read_bytes`).
        table: the parameter table of this worker's whole gradients.
        arrays: the Zarr arrays of the stream by name.
    """

    path: Path | Place
    worker: int
    kind: str
    table: tuple[Parameter, ...]
    arrays: dict[str, zarr.Array[Any]]

    def __len__(self) -> int:
        return int(self.arrays["step"].shape[0]) if "step" in self.arrays else 0

    def __repr__(self) -> str:
        which = f"worker={self.worker}, kind={self.kind!r}"
        return f"Stream({str(self.path)!r}, {which}, {len(self)} rows)"

    @cached_property
    def coordinates(self) -> dict[str, Vector]:
        """The coordinates by name, one value per row: integers, float64 (NaN.

        Not known), `point` as text.
        """
        if not len(self):
            empty = {name: np.zeros(0, dtype) for name, dtype in COORDINATES.items()}
            return {**empty, "point": np.zeros(0, "U8")}
        values = {
            name: self._load(name)
            if name in self.arrays
            else np.full(len(self), UNKNOWN.get(name, np.nan), dtype)
            for name, dtype in COORDINATES.items()
        }
        return {**values, "point": np.array(POINTS)[values["point"]]}

    @property
    def steps(self) -> Vector:
        """The optimizer step of every row, int64."""
        return self.coordinates["step"]

    @cached_property
    def present(self) -> Vector:
        """Whether each parameter had a gradient, bool [rows, parameters].

        A zero gradient counts as one.
        """
        return self._load("present") if len(self) else np.zeros((0, len(self.table)), bool)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that `read` can return: "grad", and "weight" if the rows have weights."""
        return tuple(q for q in QUANTITIES if any(f"{q}_{d}" in self.arrays for d in DTYPES))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the elements, in table order."""
        return tuple(
            d for d in widths(self.table) if self.element_ids is None or d in self.element_ids
        )

    @cached_property
    def element_ids(self) -> dict[str, Vector] | None:
        """The indices of the tracked elements in the flat array of each dtype.

        None for full rows.
        """
        if self.kind == "full":
            return None
        if self.kind in BLOBS:
            return {}
        start = "element_ids_"
        return {n.removeprefix(start): self._load(n) for n in self.arrays if n.startswith(start)}

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The table for the vectors of *this* stream.

        In a track, offset and numel count tracked elements (numel is 0 if none is tracked), and
        shape is the shape of the whole parameter. Parameters with sparse gradients have no
        elements in any vector: numel is 0.
        """
        if self.element_ids is None or self.kind in BLOBS:
            return tuple(replace(p, numel=0) if p.layout != "dense" else p for p in self.table)
        none = np.zeros(0, np.int64)
        return tuple(_tracked(p, self.element_ids.get(p.dtype, none)) for p in self.table)

    @property
    def sampling_fraction(self) -> float:
        """The tracked share of the elements that they were drawn from.

        1.0 for rows of all elements.

        Parameters with sparse gradients take no part in a track.
        """
        whole = sum(widths(self.table).values())
        if self.kind != "track" or not whole:
            return 1.0
        return sum(p.numel for p in self.parameters) / whole

    def read(self, row: int, parameter: str | None = None, quantity: str = "grad") -> torch.Tensor:
        """Read one row, or one parameter of it.

        Args:
            row: the index of the row in this stream; negative counts from the end (see `steps`).
            parameter: a name or an alias; None reads all parameters, absent ones as zeros (see
                `present`).
            quantity: "grad" or "weight".

        Returns:
            The whole row: 1-D, in table order, in the narrowest dtype that holds every element
            exactly, without parameters whose gradients are sparse. One parameter: in its own
            dtype, with its shape (1-D in a track); a sparse one as a coalesced sparse tensor.

        Raises:
            IndexError: no such row.
            LookupError: that parameter had no gradient in that row, or the rows have no weights,
                or the rows are bytes and not gradients.
            ValueError: no such parameter or quantity.
            StoreFormatError: a chunk of the row is missing or damaged.
        """
        if self.kind in BLOBS:
            fact = f"rows of kind {self.kind!r} hold no gradients"
            raise LookupError(f"cannot read a gradient of {self!r}: {fact}")
        index = self._index(row)
        self._check_quantity(quantity)
        if parameter is None:
            return self._read_all(index, quantity)
        place = self._place(parameter)
        if quantity == "grad" and not self.present[index, place]:
            fact = f"it had none at row {index} (step {self.steps[index]})"
            raise LookupError(f"cannot read the gradient of {parameter!r}: {fact}; see .present")
        p = self.parameters[place]
        if p.layout != "dense" and quantity != "grad":
            fact = "its gradients are sparse, and weights are kept of dense ones alone"
            raise LookupError(f"cannot read the {quantity} of {parameter!r}: {fact}")
        if p.layout != "dense" and self.kind == "full":
            return self._read_sparse(index, place)
        flat = self._read_flat(index, p.dtype, quantity, p.offset, p.offset + p.numel)
        return flat.reshape(p.shape) if self.kind == "full" else flat

    def read_flat(
        self,
        row: int,
        dtype: str,
        start: int = 0,
        stop: int | None = None,
        *,
        quantity: str = "grad",
    ) -> torch.Tensor:
        """Read elements of one dtype of a row, 1-D in that dtype; absent parameters as zeros.

        Args:
            row: the index of the row in this stream; negative counts from the end.
            dtype: the dtype of the elements.
            start: the first element, as in a slice.
            stop: the element behind the last, as in a slice; None reads to the end.
            quantity: "grad" or "weight".

        Raises:
            IndexError: no such row.
            StoreFormatError: a chunk of the row is missing or damaged.
        """
        first, last, _ = slice(start, stop).indices(_lengths(self.parameters)[dtype])
        return self._read_flat(self._index(row), dtype, quantity, first, max(first, last))

    def read_bytes(self, row: int) -> bytes:
        """Read the bytes of one row of kind "summary" or "shadow".

        Raises:
            IndexError: no such row.
            LookupError: rows of this kind are gradients.
        """
        if self.kind not in BLOBS:
            raise LookupError(f"cannot read bytes of {self!r}: its rows are gradients; use read")
        return bytes(self.read_ragged(row, self.kind))

    def nnz(self, row: int, parameter: str) -> int:
        """Count the stored elements of a sparse gradient in one row; 0 if there was none."""
        place = self._place(parameter)
        first, stop = self._span(self._index(row), f"values_{place}")
        return stop - first

    def rows(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Iterate over (step, whole row)."""
        for row, step in enumerate(self.steps):
            yield int(step), self.read(row)

    def _index(self, row: int) -> int:
        index = operator.index(row)
        if not -len(self) <= index < len(self):
            rule = (
                f"row must be from {-len(self)} to {len(self) - 1}"
                if len(self)
                else "a row must exist"
            )
            raise IndexError(f"{rule}, got {row}: the stream has {len(self)} rows")
        return index % len(self)

    def _span(self, row: int, name: str) -> tuple[int, int]:
        ends = self._load(f"{name}_ends")
        return int(ends[row - 1]) if row else 0, int(ends[row])

    def read_ragged(self, row: int, name: str) -> Vector:
        """Read one row of a ragged array (of different length in every row), as stored."""
        first, stop = self._span(self._index(row), name)
        data = f"{name}_data"
        return self._load(data, slice(first, stop)) if stop > first else np.zeros(0, np.uint8)

    def _read_sparse(self, row: int, place: int) -> torch.Tensor:
        """Read a sparse gradient.

        Its indices are flattened over the leading dimensions; a value may be a vector.
        """
        p = self.table[place]
        indices = self.read_ragged(row, f"indices_{place}").astype(np.int64)
        values = self.read_ragged(row, f"values_{place}")
        flat = as_values(values, p.dtype)
        each = len(values) // max(1, len(indices))
        dims = next(
            n for n in range(1, len(p.shape) + 1) if math.prod(p.shape[n:]) <= max(1, each)
        )
        places = torch.from_numpy(np.stack(np.unravel_index(indices, p.shape[:dims])))
        vectors = flat.reshape(len(indices), *p.shape[dims:])
        sparse = torch.sparse_coo_tensor(places, vectors, p.shape, check_invariants=True)
        return sparse.coalesce()

    @cached_property
    def _places(self) -> dict[str, int]:
        """The index of each parameter in the table, by name and alias.

        The first of a name counts.
        """
        places: dict[str, int] = {}
        for place, p in enumerate(self.table):
            for name in (p.name, *p.aliases):
                places.setdefault(name, place)
        return places

    def _place(self, name: str) -> int:
        if name in self._places:
            return self._places[name]
        known = ", ".join(p.name for p in self.table[:5]) + (
            ", ..." if len(self.table) > 5 else ""
        )
        raise ValueError(f"parameter must be one of {known}, got {name!r}")

    def _check_quantity(self, quantity: str) -> None:
        if quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
        if quantity not in self.quantities:
            raise LookupError(f"cannot read {quantity}: rows of {self!r} carry none")

    def _read_all(self, row: int, quantity: str) -> torch.Tensor:
        tracked = _lengths(self.parameters)
        flat = {d: self._read_flat(row, d, quantity, 0, tracked[d]) for d in self.dtypes}
        if len(flat) == 1:
            return next(iter(flat.values()))
        wide = reduce(torch.promote_types, (f.dtype for f in flat.values()))
        parts = [flat[p.dtype][p.offset :][: p.numel] for p in self.parameters if p.dtype in flat]
        return torch.cat([part.to(wide) for part in parts])

    def _read_flat(
        self, row: int, dtype: str, quantity: str, start: int, stop: int
    ) -> torch.Tensor:
        if start == stop:
            return torch.zeros(0, dtype=getattr(torch, dtype))
        name = f"{quantity}_{dtype}"
        values = read_raw(self.path / self._key(name), self.arrays[name], row, (start, stop))
        if values is None:
            values = self._load(name, row, slice(start, stop))
        return as_values(values, dtype)

    def _key(self, name: str) -> str:
        return f"worker_{self.worker}/{PREFIXES[self.kind]}{name}"

    def _load(self, name: str, *index: Any) -> Vector:
        """Read an array, or one row of it."""
        try:
            return np.asarray(self.arrays[name][index or ...])
        except (ValueError, RuntimeError) as error:  # of a StoreFormatError: a chunk is missing
            raise StoreFormatError(self._damage(name, index, error)) from error

    def _damage(self, name: str, index: tuple[Any, ...], error: Exception) -> str:
        """Describe what could not be read: the parameters, the step, and the key of the chunk."""
        key = self._key(name)
        array, where = self.arrays[name], f"cannot read {self.path}/{key}"
        damaged = bad_chunk(self.path / key, array, index)
        if damaged is None:
            return f"{where}: a chunk is damaged ({first_line(error)}); {RESTORE}"
        chunk, fact = damaged
        file = ".".join(["c", *map(str, chunk)])
        parameters = () if name.startswith("element_ids_") else self.parameters
        what = held_by(name, array, chunk, index, parameters)
        rows = self._rows_named(name, rows_of(array, chunk, index))
        holds = " in ".join(filter(None, [what, rows]))
        return f"{where}: {fact}; it holds {holds} (key {key}/{file}); {RESTORE}"

    def _rows_named(self, name: str, rows: range) -> str:
        """Name rows in words, with their steps if those can be read."""
        if name.startswith("element_ids_"):
            return ""
        if name.endswith("_data"):  # of another length in every row
            ends = self._load(f"{name.removesuffix('_data')}_ends")
            start, end = np.searchsorted(ends, [rows[0], rows[-1]], side="right")
            rows = range(int(start), int(end) + 1)
        text = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
        if name in COORDINATES:  # reading the steps may be what has failed
            return text
        first, last = (int(self.steps[row]) for row in (rows[0], rows[-1]))
        return f"{text} (step {first})" if len(rows) == 1 else f"{text} (steps {first} to {last})"


_NAMED = {"track": "tracked", "summary": "summary", "shadow": "shadow"}


def _lengths(parameters: tuple[Parameter, ...]) -> dict[str, int]:
    """Count the elements of a vector by dtype."""
    total: dict[str, int] = {}
    for p in parameters:
        total[p.dtype] = total.get(p.dtype, 0) + p.numel
    return total


def _tracked(p: Parameter, ids: Vector) -> Parameter:
    if p.layout != "dense":
        return replace(p, numel=0)
    first, stop = np.searchsorted(ids, [p.offset, p.offset + p.numel])
    return replace(p, offset=int(first), numel=int(stop - first))
