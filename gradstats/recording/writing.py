"""The writer: a thread that takes staged rows, completes their coordinates and commits them."""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gradstats.recording.staging import (
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
from gradstats.store import GradientStore, Row

#: A commit costs about the same for one row as for many, so tracked rows wait for company.
BATCH_ROWS = 32
LINGER_SECONDS = 0.5


class Writer:
    """Commits staged rows in the background, in order, and hands their slots back.

    What cannot be written is counted and reported; the thread goes on with the next rows.

    Args:
        store: Where to; the writer alone uses it from now on, and closes it.
        worker: Whose rows they are.
        segment: The segment of every row.
        on_loss: Told about rows that could not be written, and why.

    Attributes:
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
        on_loss: Callable[[Sequence[Slot], Exception], None],
    ) -> None:
        self.rows: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.nbytes = 0
        self.dropped = 0
        self.nonfinite = 0
        self._store = store
        self._worker = worker
        self._segment = segment
        self._seen = np.zeros(len(store.parameters), dtype=bool)
        self._on_loss = on_loss
        self._queue: queue.SimpleQueue[list[Slot] | None] = queue.SimpleQueue()
        # a daemon, so that a training that never closes its recording can still end
        self._thread = threading.Thread(target=self._run, name="gradstats-writer", daemon=True)
        self._thread.start()

    def put(self, step: list[Slot]) -> None:
        """Hand over the rows of one step, which nobody changes any more."""
        self._queue.put(step)

    def close(self) -> None:
        """Write what was handed over, end the thread and close the store."""
        self._queue.put(None)
        self._thread.join()
        self._store.close()

    @property
    def where(self) -> str:
        """The store, as a message names it."""
        return str(self._store.path)

    @property
    def never_present(self) -> list[str]:
        """Names of parameters that had a gradient in none of the rows, if there are rows."""
        if not any(self.rows.values()):
            return []
        return [
            p.name for p, seen in zip(self._store.parameters, self._seen, strict=True) if not seen
        ]

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next_batch()
            for kind in KINDS:
                slots = [slot for slot in batch if slot.source.kind == kind]
                if slots:
                    self._write(kind, slots)

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
            squares = [_square_sum(slot) for slot in slots]
            rows = [self._row(slot, square) for slot, square in zip(slots, squares, strict=True)]
            self._store.append_rows(rows, self._worker, kind)
            self.rows[kind] += len(slots)
            self.nbytes += sum(flat.nbytes for slot in slots for flat in slot.flat.values())
            self.nonfinite += sum(not math.isfinite(square) for square in squares)
            for slot in slots:
                self._seen |= slot.present
        except Exception as error:
            self.dropped += len(slots)
            self._on_loss(slots, error)
        finally:
            for slot in slots:
                slot.source.pool.give_back(slot)

    def _row(self, slot: Slot, square: float) -> Row:
        scalars = slot.scalars.tolist()
        norm, limit = scalars[CLIP_NORM], scalars[CLIP_LIMIT]
        coordinates = {
            **slot.facts,
            "segment": self._segment,
            "point": slot.source.point,
            "loss": scalars[LOSS],
            "learning_rate": scalars[LEARNING_RATE],
            "grad_norm": math.nan if slot.source.kind == "track" else math.sqrt(square),
            "loss_scale": scalars[LOSS_SCALE],
            "skipped": int(scalars[SKIPPED] > 0),
            "clip_norm": norm,
            "clip_coefficient": limit / (norm + 1e-6) if norm + 1e-6 > limit else norm * 0 + 1,
        }
        return Row(slot.step, slot.flat, slot.present, coordinates, ragged=_ragged(slot))


def _ragged(slot: Slot) -> dict[str, np.ndarray]:
    """Sparse gradients as the store keeps them: coalesced, leading indices flattened."""
    ragged: dict[str, np.ndarray] = {}
    for place, (indices, values) in slot.sparse.items():
        shape = slot.source.shape(place)
        sparse = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
        sparse = sparse.coalesce()
        strides = np.cumprod([1, *shape[indices.shape[0] - 1 : 0 : -1]])[::-1]
        ragged[f"indices_{place}"] = strides @ sparse.indices().numpy()
        ragged[f"values_{place}"] = _bits(sparse.values().reshape(-1))
    return ragged


def _square_sum(slot: Slot) -> float:
    """Add up the squares of a row in float64: not finite if and only if an element is not.

    In numpy, because a torch operation of this thread would start a second team of OpenMP threads
    beside the training's.
    """
    slot.wait()
    vectors = [*slot.flat.values(), *(values.reshape(-1) for _, values in slot.sparse.values())]
    with np.errstate(all="ignore"):
        return sum(
            float(np.square(_as_numpy(flat[start : start + 2**20]), dtype=np.float64).sum())
            for flat in vectors
            for start in range(0, len(flat), 2**20)
        )


def _bits(values: Tensor) -> np.ndarray:
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def _as_numpy(block: Tensor) -> np.ndarray:
    if block.dtype != torch.bfloat16:
        return block.numpy()
    # numpy has no bfloat16; its bits are the upper half of a float32's
    bits = block.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32)
