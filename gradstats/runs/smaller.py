"""Smaller rows of a run: fewer elements, a narrower dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.runs.narrowing import Narrowing
from gradstats.settings import SettingError
from gradstats.store import GradientStore, Parameter, Row, Stream, parameter_table
from gradstats.store.layout import BLOBS, DTYPES
from gradstats.store.rows import as_bits, as_values
from gradstats.summary import summarize
from gradstats.summary.encoding import to_bytes

MODES = ("full", "track", "summary", "shadow")


@dataclass(frozen=True)
class Smaller:
    """The part of a run to copy.

    Attributes:
        steps: (start, stop, stride): steps with start <= step < stop, every stride-th of them.
        dtype: the dtype of the gradients, such as "bfloat16"; "" keeps theirs. Summaries stay
            those of the captured gradients.
        modes: kinds of rows, None for all; "summary" computes Summaries from full rows if the run
            has none.
        track: number of tracked elements to keep, chosen at random; None keeps all.
        seed: seed of that choice.
        allow_loss: accept elements that the dtype makes infinite, and any number that it makes 0.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: tuple[int | None, int | None, int] = (None, None, 1)
    dtype: str = ""
    modes: Sequence[str] | None = None
    track: int | None = None
    seed: int = 0
    allow_loss: bool = False

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            rule = f"must be one of {', '.join(DTYPES)}"
            raise SettingError("dtype", f"{rule}, got {self.dtype!r}")
        unknown = set(self.modes or ()) - set(MODES)
        if unknown:
            rule = f"must be some of {', '.join(MODES)}"
            raise SettingError("modes", f"{rule}, got {sorted(unknown)[0]!r}")
        if self.track is not None and self.track < 1:
            fact = f"must be a positive number of elements, got {self.track!r}"
            raise SettingError("track", fact)


def _narrowed(table: Sequence[Parameter], dtype: str) -> tuple[Parameter, ...]:
    """The same parameters in another dtype, laid out for it."""
    if not dtype:
        return tuple(table)
    sparse = [p.name for p in table if p.layout == "sparse"]
    laid_out = parameter_table([(p.name, p.shape, dtype) for p in table], sparse=sparse)
    return tuple(
        replace(old, dtype=dtype, offset=new.offset)
        for old, new in zip(table, laid_out, strict=True)
    )


class Layout:
    """The layout of a stream's rows in the copy.

    Args:
        stream: The rows to copy.
        smaller: The part of them to copy.
        narrowing: Converts elements, and counts what is lost over several layouts.
    """

    def __init__(
        self, stream: Stream, smaller: Smaller, narrowing: Narrowing | None = None
    ) -> None:
        self._stream = stream
        self._narrowing = narrowing or Narrowing(smaller.dtype, allow_loss=smaller.allow_loss)
        self._table = _narrowed(stream.table, smaller.dtype)
        ids: Mapping[str, Any] = stream.element_ids or {}
        self._places = _places(stream, _kept(ids, smaller))
        self._element_ids: dict[str, list[NDArray[np.int64]]] = {}
        for old, new, places in zip(stream.table, self._table, self._places, strict=True):
            if old.dtype in ids:
                moved = ids[old.dtype][places] - old.offset + new.offset
                self._element_ids.setdefault(new.dtype, []).append(moved)

    def declare(self, store: GradientStore, kind: str) -> None:
        """Make the stream in the copy."""
        worker = self._stream.worker
        if worker not in store.claimed:
            store.claim(worker, self._table)
        if kind == "track":
            ids = {d: np.concatenate(pieces) for d, pieces in self._element_ids.items()}
            store.set_track(ids, worker)
        elif kind in BLOBS:
            store.add_stream(kind, worker)

    def row(self, row: int, kind: str) -> Row:
        """One row of the copy."""
        stream = self._stream
        step, present = int(stream.steps[row]), stream.present[row]
        facts = {n: column[row].item() for n, column in stream.coordinates.items() if n != "step"}
        if kind in BLOBS:
            data = stream.read_bytes(row) if stream.kind == kind else _summaries(stream, row)
            return Row(step, {}, present, facts, ragged={kind: np.frombuffer(data, np.uint8)})
        weights = self._flat(row, "weight") if "weight" in stream.quantities else None
        return Row(step, self._flat(row, "grad"), present, facts, weights, self._sparse(row))

    def _flat(self, row: int, quantity: str) -> dict[str, Tensor]:
        stream = self._stream
        flat = {d: stream.read_flat(row, d, quantity=quantity) for d in stream.dtypes}
        pieces: dict[str, list[Tensor]] = {}
        for old, new, places in zip(stream.table, self._table, self._places, strict=True):
            if old.dtype in flat:
                piece = self._converted(row, flat[old.dtype][places], new, quantity)
                pieces.setdefault(new.dtype, []).append(piece)
        return {dtype: torch.cat(parts) for dtype, parts in pieces.items()}

    def _sparse(self, row: int) -> dict[str, NDArray[Any]]:
        """The indices and values of sparse gradients."""
        ragged = {}
        for place, (old, new) in enumerate(zip(self._stream.table, self._table, strict=True)):
            if old.layout == "sparse" and self._stream.kind == "full":
                ragged[f"indices_{place}"] = self._stream.read_ragged(row, f"indices_{place}")
                values = as_values(self._stream.read_ragged(row, f"values_{place}"), old.dtype)
                ragged[f"values_{place}"] = as_bits(self._converted(row, values, new, "grad"))
        return ragged

    def _converted(self, row: int, values: Tensor, new: Parameter, quantity: str) -> Tensor:
        """Values of a row in the dtype of the copy."""
        coordinates = self._stream.coordinates
        scale = f", multiplied by a loss scale of {float(coordinates['loss_scale'][row]):g}"
        note = scale if coordinates["unscaled"][row] == 0 else ""
        step = int(self._stream.steps[row])
        return self._narrowing(values, new.name, step, note, quantity)


def _kept(ids: Mapping[str, Any], smaller: Smaller) -> dict[str, NDArray[np.int64]]:
    """Which of the tracked elements of each dtype to keep, sorted."""
    counts = {dtype: len(places) for dtype, places in ids.items()}
    total = sum(counts.values())
    rng = np.random.default_rng(smaller.seed)
    count = min(total, smaller.track or total)
    drawn = np.sort(rng.choice(total, count, replace=False, shuffle=False))
    ends = np.cumsum([0, *counts.values()])
    return {
        dtype: drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, stop)] - start
        for dtype, start, stop in zip(counts, ends, ends[1:], strict=False)
    }


def _places(stream: Stream, kept: Mapping[str, Any]) -> list[NDArray[np.int64] | slice]:
    """Where each parameter's elements are in the vectors of a stream."""
    indices: list[NDArray[np.int64] | slice] = []
    for p in stream.parameters:
        if p.dtype in kept:
            first, stop = np.searchsorted(kept[p.dtype], [p.offset, p.offset + p.numel])
            indices.append(kept[p.dtype][first:stop])
        else:
            indices.append(slice(p.offset, p.offset + p.numel))
    return indices


def _summaries(stream: Stream, row: int) -> bytes:
    """The Summaries of a full row, one for each parameter with a gradient."""
    present = [p.name for p, has in zip(stream.table, stream.present[row], strict=True) if has]
    return to_bytes([summarize(stream.read(row, name)) for name in present])
