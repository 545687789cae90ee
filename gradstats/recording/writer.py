"""The writer: a thread that takes staged rows, completes their coordinates and commits them."""

import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from gradstats.recording.row_contents import coalesced, coordinates, norm, ragged, summaries
from gradstats.recording.slots import BATCH_BYTES, BATCH_ROWS, KINDS, Kind, Slot
from gradstats.store import GradientStore, Place, Row
from gradstats.summary import Summary
from gradstats.summary.encoding import to_bytes

#: So long tracked rows wait for company.
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
        warn: Called with (subject, text) about a connection that fails; prints a subject once.
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
        warn: Callable[[str, str], None],
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
        self._warn = warn
        self._on_summary_ref = (lambda: None) if on_summary is None else weakref.ref(on_summary)
        self._calls = on_summary is not None
        self._waiting: list[tuple[int, dict[str, Summary]]] = []
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
        """Let the thread write what was handed over, close the store and call `when_ended`.

        This returns at once, and waits for nothing: it may run in the garbage collector, which
        has cleared weak references by then. So `on_summary`, if there is one, is given again,
        and called with all that was handed over.
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
            self._warn("close", f"cannot finish {self.where}: {type(error).__name__}: {error}")
        if self.unsent:
            text = f"{self.unsent} rows did not reach {self.where} ({self._store.fault})"
            remedy = f"gradstats copy {self._store.folder} {self.where}"
            self._warn("unsent", f"{text}; the next recording there sends them, or: {remedy}")

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
            self._call_on_summary()
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
            self._warn("sending", f"{text}, training goes on")
        return not ended

    def _next_batch(self) -> tuple[list[Slot], bool]:
        """Wait for rows; only tracked ones wait for more, with full ones goes what is there."""
        step = self._queue.get()
        deadline = time.monotonic() + LINGER_SECONDS
        batch: list[Slot] = []
        while step is not None:
            batch.extend(step)
            if len(batch) >= BATCH_ROWS or sum(slot.cost for slot in batch) >= BATCH_BYTES:
                return batch, False
            if any(slot.source.kind != "track" for slot in step):
                deadline = 0.0
            try:
                step = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _write(self, kind: Kind, slots: Sequence[Slot]) -> None:
        try:
            if kind == "summary":
                self._write_summaries(slots[0])
            else:
                self._write_rows(kind, slots)
        except Exception as error:
            if kind == "full" and len(slots) > 1:  # a row that fails takes no other with it
                for slot in slots:
                    self._write(kind, [slot])
                return
            self.dropped += len(slots)
            self._on_loss(slots[0].step, sum(slot.cost for slot in slots), error)
        for slot in slots:
            slot.source.pool.give_back(slot)

    def _write_rows(self, kind: Kind, slots: Sequence[Slot]) -> None:
        """Commit full or tracked rows, all of them or none."""
        for slot in slots:
            slot.wait()
            slot.sparse = {i: coalesced(slot, i) for i in slot.sparse}
        norms: list[float] = []

        def late(slot: Slot) -> float:
            norms.append(norm(slot))
            return norms[-1] if kind == "full" else math.nan

        rows = [self._row(slot, ragged(slot), partial(late, slot)) for slot in slots]
        self._store.append_rows(rows, self._worker, kind)
        self.rows[kind] += len(slots)
        self.nbytes += sum(
            flat.nbytes for slot in slots for flat in (*slot.flat.values(), *slot.weights.values())
        )
        self.nonfinite += sum(not math.isfinite(length) for length in norms)
        for slot in slots:
            self._seen |= slot.present
        if kind == "track" and self._shadows:
            self._write_shadows(rows)

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
            by_name = summaries(slot, self._table)
        data = to_bytes(by_name.values())
        length = math.hypot(*(summary.norm for summary in by_name.values()))
        length = math.nan if any(s.nonfinite for s in by_name.values()) else length
        row = self._row(slot, {"summary": np.frombuffer(data, np.uint8)}, lambda: length)
        self._store.append_rows([row], self._worker, "summary")
        self.rows["summary"] += 1
        self.nbytes += len(data)
        self.nonfinite += math.isnan(length)
        self._seen |= slot.present
        if self._calls:
            scale = row.coordinates["loss_scale"] if row.coordinates["unscaled"] == 0 else 1.0
            scaled = {name: one.scaled(1 / scale) for name, one in by_name.items()}
            self._waiting.append((slot.step, scaled))
            self._call_on_summary()

    def _call_on_summary(self) -> None:
        """Pass the Summaries on; later if the garbage collector has just cut the reference."""
        on_summary = self._on_summary or self._on_summary_ref()
        while on_summary is not None and self._waiting:
            on_summary(*self._waiting.pop(0))

    def _row(
        self, slot: Slot, vectors: dict[str, np.ndarray], grad_norm: Callable[[], float]
    ) -> Row:
        flat = {} if slot.source.kind == "summary" else slot.flat
        weights = slot.weights or None
        known = coordinates(slot, self._segment)
        late = {"grad_norm": grad_norm}
        return Row(slot.step, flat, slot.present, known, weights, vectors, late)
