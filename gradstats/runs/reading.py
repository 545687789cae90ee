"""Gradients from stored rows: loss scales are divided out, sparse gradients get their zeros.

`gradstats.store` returns what was captured, bit for bit: possibly multiplied by a loss scale, and
sparse gradients as indices and values. Every reader of gradients uses this module instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.runs.emptiness import NoGradientsError
from gradstats.store import Parameter, Stream
from gradstats.summary import Summary
from gradstats.summary.encoding import from_bytes

Floats = NDArray[np.float64]
HALF = (torch.float16, torch.bfloat16)
SHOWN = 5  # steps or names in a message


def divisors(coordinates: Mapping[str, NDArray[Any]]) -> Floats:
    """Return the divisor that makes each stored row a gradient, `[rows]`; NaN: not known.

    It is the loss scale if the gradients are still multiplied by it (`unscaled` 0), and 1 if they
    are not (`unscaled` 1). Rows without this information (`unscaled` -1), such as imported
    gradients, have divisor 1, or NaN if their loss scale is known and not 1.

    Args:
        coordinates: the coordinates of a stream.

    Example:
        >>> columns = {"loss_scale": np.array([8.0, 8.0, np.nan, np.nan, 8.0])}
        >>> divisors(columns | {"unscaled": np.array([0, 1, 0, -1, -1])}).tolist()
        [8.0, 1.0, nan, 1.0, nan]
    """
    scale, unscaled = coordinates["loss_scale"], coordinates["unscaled"]
    known = np.isfinite(scale) & (scale > 0)
    divisor = np.where(unscaled == 0, np.where(known, scale, np.nan), 1.0)
    divisor[(unscaled == -1) & known & (scale != 1)] = np.nan
    return divisor


@dataclass(frozen=True, eq=False, repr=False)
class Reader:
    """The gradients of some parameters in the rows of one stream.

    Rows of float16 or bfloat16 are read as float32 if a loss scale multiplies any row of the
    stream, so that dividing takes no element below the range of its dtype.

    Attributes:
        stream: the stored rows.
        selected: names of the parameters.
    """

    stream: Stream
    selected: frozenset[str]

    def __repr__(self) -> str:
        return f"<Reader of {len(self.selected)} parameters in {self.stream}>"

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The selected parameters in table order; numel counts their elements in a row.

        Offsets refer to the stored vectors, which have no elements of sparse gradients.
        """
        # of a track the elements that are tracked, else all, those of sparse gradients too
        table = self.stream.parameters if self.stream.kind == "track" else self.stream.table
        return tuple(p for p in table if p.name in self.selected)

    @property
    def numel(self) -> int:
        """The number of elements of a row."""
        return sum(p.numel for p in self.parameters)

    @cached_property
    def sparse(self) -> tuple[str, ...]:
        """The selected parameters whose gradients are sparse."""
        return tuple(p.name for p in self.parameters if p.layout != "dense")

    @property
    def untracked(self) -> bool:
        """Whether no track can hold any of the selected parameters: their gradients are sparse."""
        return len(self.sparse) == len(self.parameters)

    @cached_property
    def divisors(self) -> Floats:
        """See `divisors`."""
        return divisors(self.stream.coordinates)

    def check(self, rows: Sequence[int]) -> None:
        """Check that the gradients of these rows can be computed from what is stored.

        Raises:
            ValueError: a loss scale is not known.
            NoGradientsError: the rows have no element of these parameters.
        """
        if rows and not self.numel:
            raise NoGradientsError(f"cannot read {self.stream.kind} rows: {self.emptiness}")
        unknown = [row for row in rows if np.isnan(self.divisors[row])]
        if not unknown:
            return
        steps = [int(step) for step in self.stream.steps[unknown]]
        shown = ", ".join(map(str, steps[:SHOWN])) + (", …" if len(steps) > SHOWN else "")
        later = [int(self.stream.steps[row]) for row in rows if row > unknown[-1]]
        start = f"({later[0]}, None, 1), --steps {later[0]}: on the command line" if later else ""
        raise ValueError(
            f"cannot read the gradients of steps {shown} ({self.stream.kind} rows): the loss "
            f"scale that they may be multiplied by was not recorded; leave them out with "
            f"steps={start}, or read what is stored with run.stream({self.stream.kind!r})"
        )

    def remarks(self, rows: Sequence[int]) -> Iterator[str]:
        """Describe which rows are divided by a loss scale, and what these rows leave out."""
        kind, divisors = self.stream.kind, self.divisors[list(rows)]
        scales = divisors[np.isfinite(divisors) & (divisors != 1)]
        unknown = int(np.isnan(divisors).sum())
        if len(scales):
            low, high = f"{scales.min():,.6g}", f"{scales.max():,.6g}"
            scale = low if low == high else f"{low} to {high}"
            fact = f"stored multiplied by a loss scale of {scale}, divided when they are read"
            if kind == "shadow":
                fact = f"compressors ran on gradients multiplied by a loss scale of {scale}"
            yield f"{len(scales)} of {len(divisors)} {kind} rows: {fact}"
        if unknown and kind != "shadow":
            fact = "the loss scale was not recorded, they are refused when they are read"
            yield f"{unknown} of {len(divisors)} {kind} rows: {fact}; leave them out with steps="
        if rows and self.left_out:
            yield f"track rows hold nothing of parameters with sparse gradients: {self.left_out}"

    @property
    def left_out(self) -> str:
        """The selected parameters that rows of this kind cannot hold, by name; "" for none."""
        return self._names if self.stream.kind == "track" else ""

    @property
    def _names(self) -> str:
        """The parameters with sparse gradients."""
        return ", ".join(self.sparse[:SHOWN]) + (", …" if len(self.sparse) > SHOWN else "")

    @property
    def emptiness(self) -> str:
        """Name the reason why rows have no element of the selected parameters."""
        if self.stream.kind == "track" and self.untracked:
            fact = f"tracks hold no sparse gradients, and those of {self._names} are"
            return f"{fact}; capture with full="
        return "they hold no element of the selected parameters"

    def gradient(self, row: int) -> Tensor:
        """Read the selected parameters one after another; zeros if one has no gradient.

        The dtype is the narrowest that holds every element of the stream.
        """
        if self.sparse and self.stream.kind == "full":
            return self._true(row, self._joined(row))
        values = self._true(row, self.stream.read(row))
        return values if self._places is None else values[self._places]

    def parameter(self, row: int, name: str, quantity: str = "grad") -> Tensor:
        """Read the gradient of one parameter, as `Stream.read` does; a sparse one stays sparse."""
        values = self.stream.read(row, name, quantity)
        return self._true(row, values) if quantity == "grad" else values

    def flat(self, row: int, dtype: str) -> Tensor:
        """Read the gradients of one dtype, as `Stream.read_flat` does."""
        return self._true(row, self.stream.read_flat(row, dtype))

    def elements(self, row: int, dtype: str, start: int, stop: int) -> Floats:
        """Read a slice of the result of `flat`, as float64."""
        values = self.stream.read_flat(row, dtype, start, stop)
        return np.asarray(self._true(row, values.double()).numpy())

    def summaries(self, row: int) -> dict[str, Summary]:
        """Read the Summaries of one row by name, for the selected parameters with a gradient."""
        stream, divisor = self.stream, self._divisor(row)
        present = stream.present[row]
        names = [p.name for p, has in zip(stream.table, present, strict=True) if has]
        pairs = zip(names, from_bytes(stream.read_bytes(row)), strict=True)
        chosen = {name: summary for name, summary in pairs if name in self.selected}
        if divisor == 1:
            return chosen
        return {name: summary.scaled(1 / divisor) for name, summary in chosen.items()}

    def _divisor(self, row: int) -> float:
        if np.isnan(self.divisors[row]):
            self.check([row])
        return float(self.divisors[row])

    def _true(self, row: int, stored: Tensor) -> Tensor:
        """Convert stored values of a row to the gradient."""
        divisor = self._divisor(row)
        if self._multiplied and stored.dtype in HALF:
            stored = stored.to(torch.float32)
        return stored if divisor == 1 else stored / divisor

    @cached_property
    def _multiplied(self) -> bool:
        return bool((self.divisors != 1).any())

    def _joined(self, row: int) -> Tensor:
        """Read a whole row, with the zeros of every sparse gradient."""
        stream = self.stream
        flats = {dtype: stream.read_flat(row, dtype) for dtype in stream.dtypes}
        wide = reduce(torch.promote_types, (flat.dtype for flat in flats.values()))
        return torch.cat([piece.to(wide) for piece in self._pieces(row, flats)])

    def _pieces(self, row: int, flats: Mapping[str, Tensor]) -> Iterator[Tensor]:
        table, present = self.stream.table, self.stream.present[row]
        has_gradient = {p.name: has for p, has in zip(table, present, strict=True)}
        for p in self.parameters:
            if p.layout == "dense":
                yield flats[p.dtype][p.offset : p.offset + p.numel]
            elif has_gradient[p.name]:
                yield self.stream.read(row, p.name).to_dense().reshape(-1)
            else:
                yield torch.zeros(p.numel, dtype=getattr(torch, p.dtype))

    @cached_property
    def _places(self) -> Tensor | None:
        """The indices of the selected elements in a row; None for all of them."""
        table = self.stream.parameters
        if len(self.parameters) == len(table):
            return None
        mask = np.repeat([p.name in self.selected for p in table], [p.numel for p in table])
        return torch.from_numpy(np.flatnonzero(mask))


def last_told(
    steps: NDArray[np.int64],
    segments: NDArray[np.int64],
    begins: Mapping[int, int] | None = None,
) -> NDArray[np.bool_]:
    """Return which rows belong to the final training, without undone steps, `[rows]`.

    A restart from a checkpoint repeats steps: rows of an earlier segment, from the first step of a
    later segment on, were undone.

    Args:
        steps: step of each row.
        segments: segment of each row.
        begins: the first step of each segment, if rows of other kinds determine it too.

    Example:
        >>> last_told(np.array([0, 1, 2, 1, 2]), np.array([0, 0, 0, 1, 1])).tolist()
        [True, False, False, True, True]
        >>> last_told(np.array([0, 10]), np.array([0, 0]), {0: 0, 1: 4}).tolist()
        [True, False]
    """
    firsts = {int(each): int(steps[segments == each].min()) for each in np.unique(segments)}
    firsts |= begins or {}
    kept = np.zeros(len(steps), bool)
    limit = np.iinfo(np.int64).max
    for segment in sorted(firsts, reverse=True):
        kept |= (segments == segment) & (steps < limit)
        limit = min(limit, firsts[segment])
    return kept
