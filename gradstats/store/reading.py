"""Reading one stream of committed rows, lazily, by Zarr.

Only five modules of gradstats import zarr: this one, opening.py, places.py, objects.py and
zarr_stores.py, none of them before a store is looked into.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstats.store.layout import (
    BLOBS,
    COORDINATES,
    DTYPES,
    POINTS,
    QUANTITIES,
    UNKNOWN,
)
from gradstats.store.loading import load, load_row
from gradstats.store.parameters import Parameter, tracked, widths
from gradstats.store.places import Place
from gradstats.store.rows import as_sparse, as_values

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
        """The coordinates by name, one value per row: integers, float64, `point` as text.

        NaN stands for what is not known.
        """
        if not len(self):
            empty = {name: np.zeros(0, dtype) for name, dtype in COORDINATES.items()}
            return {**empty, "point": np.zeros(0, "U8")}
        values = {
            name: load(self, name)
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
        return load(self, "present") if len(self) else np.zeros((0, len(self.table)), bool)

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
        return {n.removeprefix(start): load(self, n) for n in self.arrays if n.startswith(start)}

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The table for the vectors of *this* stream.

        In a track, offset and numel count tracked elements (numel is 0 if none is tracked), and
        shape is the shape of the whole parameter. Parameters with sparse gradients have no
        elements in any vector: numel is 0.
        """
        if self.element_ids is None or self.kind in BLOBS:
            return tuple(replace(p, numel=0) if p.layout != "dense" else p for p in self.table)
        return tracked(self.table, self.element_ids)

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
        first, last, _ = slice(start, stop).indices(widths(self.parameters)[dtype])
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
        yield from ((int(step), self.read(row)) for row, step in enumerate(self.steps))

    def _index(self, row: int) -> int:
        index = operator.index(row)
        if not -len(self) <= index < len(self):
            rule = f"row must be from {-len(self)} to {len(self) - 1}"
            rule = rule if len(self) else "a row must exist"
            raise IndexError(f"{rule}, got {row}: the stream has {len(self)} rows")
        return index % len(self)

    def ends(self, name: str) -> Vector:
        """Read where each row of a ragged array ends, in items, int64 [rows]."""
        return load(self, f"{name}_ends")

    def _span(self, row: int, name: str) -> tuple[int, int]:
        ends = self.ends(name)
        return int(ends[row - 1]) if row else 0, int(ends[row])

    def read_ragged(self, row: int, name: str) -> Vector:
        """Read one row of a ragged array (of different length in every row), as stored."""
        first, stop = self._span(self._index(row), name)
        data = f"{name}_data"
        return load(self, data, slice(first, stop)) if stop > first else np.zeros(0, np.uint8)

    def _read_sparse(self, row: int, place: int) -> torch.Tensor:
        p = self.table[place]
        indices = self.read_ragged(row, f"indices_{place}").astype(np.int64)
        values = self.read_ragged(row, f"values_{place}")
        return as_sparse(indices, values, p)

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
        more = ", ..." if len(self.table) > 5 else ""
        known = ", ".join(p.name for p in self.table[:5]) + more
        raise ValueError(f"parameter must be one of {known}, got {name!r}")

    def _check_quantity(self, quantity: str) -> None:
        if quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}")
        if quantity not in self.quantities:
            raise LookupError(f"cannot read {quantity}: rows of {self!r} carry none")

    def _read_all(self, row: int, quantity: str) -> torch.Tensor:
        lengths = widths(self.parameters)
        flat = {d: self._read_flat(row, d, quantity, 0, lengths[d]) for d in self.dtypes}
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
        return as_values(load_row(self, f"{quantity}_{dtype}", row, (start, stop)), dtype)
