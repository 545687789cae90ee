"""The writer: a thread that takes staged rows, completes their coordinates and commits them."""

import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gradstats.recording.slots import (
    CLIP_LIMIT,
    CLIP_NORM,
    KINDS,
    LEARNING_RATE,
    LOSS,
    LOSS_SCALE,
    SKIPPED,
    Kind,
    Slot,
)
from gradstats.store import GradientStore, Parameter, Place, Row
from gradstats.store.rows import as_bits
from gradstats.summary import Summary, summarize, summarize_segments
from gradstats.summary.encoding import to_bytes

#: A commit costs about the same for one row as for many, so tracked rows wait for company.
BATCH_ROWS = 32
LINGER_SECONDS = 0.5
OnSummary = Callable[[int, dict[str, Summary]], None]


class Shadowing(Protocol):
    """Compressors that run beside the training."""

    def row(self, track: Row) -> Row:
        """What each compressor did with a tracked row."""


class Writer:
    """Commits staged rows in the background, in order, and hands their slots back.

    What cannot be written is counted and reported; the thread goes on with the next rows.

    Args:
        store: Where to; the writer alone uses it from now on, and closes it.
        worker: Whose rows they are.
        segment: The segment of every row.
        on_loss: Called with (step, bytes, error) of rows that could not be written.
        say: Told (subject, text) about a connection that fails; says each subject once.
        shadows: Compressors that run beside the training, by the point of their tracked rows.
        on_summary: Called in this thread with (step, {name: Summary}) of each row of Summaries.
            Held weakly until `end`: it may lead to the model, and the thread must not.

    Attributes:
        ending: No more rows come.
        rows: Rows committed, by kind.
        nbytes: Bytes of their gradients.
        dropped: Rows that could not be written.
        nonfinite: Rows committed that hold a NaN or an infinity.
    """

    def __init__(
        self,
        store: GradientStore,
        worker: int,
        segment: int,
        on_loss: Callable[[int, int, Exception], None],
        say: Callable[[str, str], None],
        on_summary: OnSummary | None = None,
        shadows: Mapping[str, Shadowing] | None = None,
    ) -> None:
        self.rows: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.ending = False
        self.nbytes = 0
        self.dropped = 0
        self.nonfinite = 0
        self._store = store
        self._worker = worker
        self._segment = segment
        self._seen = np.zeros(len(store.table(worker)), dtype=bool)
        self._on_loss = on_loss
        self._say = say
        self._told = (lambda: None) if on_summary is None else weakref.ref(on_summary)
        self._tells = on_summary is not None
        self._untold: list[tuple[int, dict[str, Summary]]] = []
        self._on_summary: OnSummary | None = None
        self._when_ended: Callable[[], None] = lambda: None
        self._ended = threading.Event()
        self._process = os.getpid()
        self._shadows = dict(shadows or {})
        self._table = store.table(worker)
        self._queue: queue.SimpleQueue[list[Slot] | None] = queue.SimpleQueue()
        # a daemon, so that a training that never closes its recording can still end
        self._thread = threading.Thread(target=self._run, name="gradstats-writer", daemon=True)
        self._thread.start()

    def put(self, step: list[Slot]) -> None:
        """Hand over the rows of one step, which nobody changes any more."""
        self._queue.put(step)

    def end(
        self,
        when_ended: Callable[[], None] = lambda: None,
        on_summary: OnSummary | None = None,
    ) -> None:
        """Let the thread write what was handed over, close the store and call ``when_ended``.

        This returns at once, and waits for nothing: it may run in the garbage collector, which
        has cleared weak references by then. So ``on_summary``, if there is one, is given again,
        and told of all that was handed over.
        """
        self._when_ended, self._on_summary = when_ended, on_summary
        self.ending = True
        self._queue.put(None)

    def join(self) -> None:
        """Wait for that end; again after an interrupt."""
        # not Thread.join alone: in Python 3.11 an interrupted one marks the thread as ended
        if threading.current_thread() is not self._thread and os.getpid() == self._process:
            self._ended.wait()
            self._thread.join()

    def _close_store(self) -> None:
        try:
            self._store.close()
        except Exception as error:
            self._say("close", f"cannot finish {self.where}: {type(error).__name__}: {error}")
        if self.unsent:
            text = f"{self.unsent} rows did not reach {self.where} ({self._store.fault})"
            remedy = f"gradstats copy {self._store.folder} {self.where}"
            self._say("unsent", f"{text}; the next recording there sends them, or: {remedy}")

    @property
    def unsent(self) -> int:
        """Rows on their way to an object store."""
        return self._store.unsent

    @property
    def place(self) -> Path | Place:
        """Where the store is."""
        return self._store.path

    @property
    def where(self) -> str:
        """The store, as a message names it."""
        return str(self._store.path)

    @property
    def never_present(self) -> list[str]:
        """Names of parameters that had a gradient in none of the rows, if there are rows."""
        if not any(self.rows.values()):
            return []
        return [p.name for p, seen in zip(self._table, self._seen, strict=True) if not seen]

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
            self._tell()
            self._close_store()
            self._when_ended()
        finally:
            self._when_ended, self._on_summary = (lambda: None), None
            self._ended.set()

    def _write_next(self) -> bool:
        """Write the next rows. A function of its own, so that no slot is held while it waits.

        Returns:
            Whether there may be more.
        """
        batch, ended = self._next_batch()
        for kind in KINDS:
            slots = [slot for slot in batch if slot.source.kind == kind]
            # Summaries are large beside a commit: each row stands or falls alone
            groups = [[slot] for slot in slots] if kind == "summary" else [slots]
            for group in filter(None, groups):
                self._write(kind, group)
        if self._store.fault:
            text = f"{self._store.fault}; rows wait in {self._store.folder}"
            self._say("sending", f"{text}, training goes on")
        return not ended

    def _next_batch(self) -> tuple[list[Slot], bool]:
        """Wait for rows; a full row is written at once, since few can wait."""
        step = self._queue.get()
        deadline = time.monotonic() + LINGER_SECONDS
        batch: list[Slot] = []
        while step is not None:
            batch.extend(step)
            if len(batch) >= BATCH_ROWS or any(slot.source.kind != "track" for slot in step):
                return batch, False
            try:
                step = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _write(self, kind: Kind, slots: Sequence[Slot]) -> None:
        try:
            if kind == "summary":
                self._write_summaries(slots[0])
                return
            for slot in slots:
                slot.wait()
                slot.sparse = {i: _coalesced(slot, i) for i in slot.sparse}
            norms = [_norm(slot) for slot in slots]
            rows = [
                self._row(slot, norm, _ragged(slot))
                for slot, norm in zip(slots, norms, strict=True)
            ]
            self._store.append_rows(rows, self._worker, kind)
        except Exception as error:
            self.dropped += len(slots)
            self._on_loss(slots[0].step, sum(slot.cost for slot in slots), error)
        else:
            self.rows[kind] += len(slots)
            self.nbytes += sum(
                flat.nbytes
                for slot in slots
                for flat in (*slot.flat.values(), *slot.weights.values())
            )
            self.nonfinite += sum(not math.isfinite(norm) for norm in norms)
            for slot in slots:
                self._seen |= slot.present
            if kind == "track" and self._shadows:
                self._write_shadows(rows)
        finally:
            for slot in slots:
                slot.source.pool.give_back(slot)

    def _write_shadows(self, rows: Sequence[Row]) -> None:
        """Run the shadows on tracked rows that are stored: those stay, whatever happens here."""
        try:
            beside = [self._shadows[row.coordinates["point"]].row(row) for row in rows]
            self._store.append_rows(beside, self._worker, "shadow")
        except Exception as error:
            self.dropped += len(rows)
            self._on_loss(rows[0].step, 0, error)

    def _write_summaries(self, slot: Slot) -> None:
        """Make a Summary of each parameter, where its gradient is, and commit them as bytes."""
        slot.wait()
        with slot.source.lane.beside():
            found = _summaries(slot, self._table)
        data = to_bytes(found.values())
        norm = math.hypot(*(summary.norm for summary in found.values()))
        norm = math.nan if any(s.nonfinite for s in found.values()) else norm
        row = self._row(slot, norm, {"summary": np.frombuffer(data, np.uint8)})
        self._store.append_rows([row], self._worker, "summary")
        self.rows["summary"] += 1
        self.nbytes += len(data)
        self.nonfinite += math.isnan(norm)
        self._seen |= slot.present
        if self._tells:
            scale = row.coordinates["loss_scale"] if row.coordinates["unscaled"] == 0 else 1.0
            found = {name: one.scaled(1 / scale) for name, one in found.items()}
            self._untold.append((slot.step, found))
            self._tell()

    def _tell(self) -> None:
        """Tell of the Summaries; later where the garbage collector has just cut the reference."""
        on_summary = self._on_summary or self._told()
        while on_summary is not None and self._untold:
            on_summary(*self._untold.pop(0))

    def _row(self, slot: Slot, grad_norm: float, ragged: dict[str, np.ndarray]) -> Row:
        scalars = slot.scalars.tolist()
        norm, limit = scalars[CLIP_NORM], scalars[CLIP_LIMIT]
        seconds = [later - sooner for sooner, later in pairwise(slot.times)]
        coordinates = {
            **slot.facts,
            "step_seconds": median(seconds) if seconds else None,
            "segment": self._segment,
            "point": slot.source.point,
            "loss": scalars[LOSS],
            "learning_rate": scalars[LEARNING_RATE],
            "grad_norm": math.nan if slot.source.kind == "track" else grad_norm,
            "loss_scale": scalars[LOSS_SCALE],
            "skipped": int(scalars[SKIPPED] > 0),
            "clip_norm": norm,
            "clip_coefficient": limit / (norm + 1e-6) if norm + 1e-6 > limit else norm * 0 + 1,
        }
        flat = {} if slot.source.kind == "summary" else slot.flat
        weights = slot.weights or None
        return Row(slot.step, flat, slot.present, coordinates, weights, ragged)


def _summaries(slot: Slot, table: Sequence[Parameter]) -> dict[str, Summary]:
    """By name, of the parameters that have a gradient, in table order."""
    found: dict[int, Summary] = {}
    for dtype, flat in slot.flat.items():
        here = [i for i, p in enumerate(table) if p.dtype == dtype and p.layout == "dense"]
        offsets = [0, *(table[i].offset + table[i].numel for i in here)]
        found |= zip(here, summarize_segments(flat, offsets), strict=True)
    for place, (indices, values) in slot.sparse.items():
        shape = table[place].shape
        found[place] = summarize(
            torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
        )
    return {p.name: found[i] for i, p in enumerate(table) if slot.present[i]}


def _coalesced(slot: Slot, place: int) -> tuple[Tensor, Tensor]:
    """Indices and values of a sparse gradient, those of one index added up."""
    indices, values = slot.sparse[place]
    shape = slot.source.shape(place)
    sparse = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
    return sparse.indices(), sparse.values()


def _ragged(slot: Slot) -> dict[str, np.ndarray]:
    """Sparse gradients as the store keeps them: leading indices flattened, values too."""
    ragged: dict[str, np.ndarray] = {}
    for place, (indices, values) in slot.sparse.items():
        shape = slot.source.shape(place)
        strides = np.cumprod([1, *shape[indices.shape[0] - 1 : 0 : -1]])[::-1]
        ragged[f"indices_{place}"] = strides @ indices.numpy()
        ragged[f"values_{place}"] = as_bits(values.reshape(-1))
    return ragged


def _norm(slot: Slot) -> float:
    """The Euclidean norm of a row: not finite if and only if an element is not.

    Of float64 whose squares leave float64 it is taken over a power of two.

    In numpy, because a torch operation of this thread would start a second team of OpenMP threads
    beside the training's.
    """
    vectors = [*slot.flat.values(), *(values.reshape(-1) for _, values in slot.sparse.values())]
    blocks = [
        _as_numpy(flat[start : start + 2**20])
        for flat in vectors
        for start in range(0, len(flat), 2**20)
    ]
    with np.errstate(all="ignore"):
        square = sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks)
        if 1e-280 < square < math.inf or not any(block.dtype == np.float64 for block in blocks):
            return math.sqrt(square)
        largest = max(float(np.abs(block).max(initial=0.0)) for block in blocks)
        unit = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
        square = sum(float(np.square(block / unit, dtype=np.float64).sum()) for block in blocks)
        return math.sqrt(square) * unit


def _as_numpy(block: Tensor) -> np.ndarray:
    if block.dtype != torch.bfloat16:
        return block.numpy()
    # numpy has no bfloat16; its bits are the upper half of a float32's
    bits = block.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32)
