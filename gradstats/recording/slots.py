"""Memory of rows on their way to the writer, and the way from the device to the host.

On a CUDA device the way is a side stream into pinned memory, whose end is an event for the writer:
the training thread waits for neither.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gradstats.recording.staging import Source

Kind = Literal["full", "track", "summary"]
KINDS: tuple[Kind, ...] = ("full", "track", "summary")
Point = Literal["local", "reduced", "clipped", "outer"]
POINTS: tuple[Point, ...] = ("local", "reduced", "clipped", "outer")  # as rows of a step follow

#: Indices in Slot.scalars: what may be known on the device alone.
LOSS, LEARNING_RATE, LOSS_SCALE, SKIPPED, CLIP_NORM, CLIP_LIMIT = range(6)

#: A commit costs about the same for one row as for many, so what waits is committed together: at
#: most so many rows, or so many bytes.
BATCH_ROWS = 32
BATCH_BYTES = 16_000_000

SCALAR = "it must be a number or a tensor of one element"


def waiting(kind: Kind, nbytes: int) -> int:
    """Return how many rows may wait for the writer before the training does.

    Twice what is committed together, so that one half is filled while the other is written.

    Args:
        kind: the kind of the rows.
        nbytes: bytes of one row.

    Example:
        >>> waiting("full", 100_000_000), waiting("full", 1_000_000), waiting("track", 262_144)
        (2, 32, 64)
    """
    if kind == "summary":
        return 2
    few = BATCH_BYTES // max(1, nbytes) if kind == "full" else BATCH_ROWS
    return 2 * min(BATCH_ROWS, max(1, few))


def empty(widths: Mapping[str, int], **where: Any) -> dict[str, Tensor]:
    """One vector per dtype, of these lengths."""
    return {
        dtype: torch.empty(width, dtype=getattr(torch, dtype), **{"device": "cpu", **where})
        for dtype, width in widths.items()
    }


class Slot:
    """Memory of one row: filled by the training thread, read by the writer, used again.

    Attributes:
        source: Where its row comes from.
        step: The optimizer step of the row it holds.
        cost: Bytes its row takes on disk.
        flat: One vector per dtype; in host memory, but on the device for Summaries.
        present: One truth value per parameter: it had a gradient.
        weights: As `flat`, the values of the parameters; empty where they are not wanted.
        sparse: Indices and values of sparse gradients by the parameter's index in the table.
        scalars: float64, NaN where not known.
        numbers: The same memory as an array.
        views: Each parameter's part of `flat`, in its shape.
        facts: Coordinates that are known on the host.
        times: When the last steps began, in seconds.
    """

    def __init__(self, source: "Source", widths: Mapping[str, int], device: torch.device) -> None:
        pinned = device.type == "cuda"
        on_device = pinned and source.kind == "summary"
        self.source = source
        self.step = -1
        self.cost = 0
        self.present = np.zeros(0, dtype=bool)
        self.flat = empty(widths, **({"device": device} if on_device else {"pin_memory": pinned}))
        self.weights = empty(widths, pin_memory=pinned) if source.weights else {}
        self.sparse: dict[int, tuple[Tensor, Tensor]] = {}
        self.scalars = torch.empty(6, dtype=torch.float64, device="cpu", pin_memory=pinned)
        self.numbers = self.scalars.numpy()  # the same memory
        self.views: list[Tensor] = []
        self.facts: dict[str, Any] = {}
        self.times: Sequence[float] = ()
        self.ready = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the copies into this slot have arrived."""
        if self.ready is not None:
            self.ready.synchronize()

    def note(self, index: int, value: object) -> None:
        """Put a number or a one-element tensor into `scalars` without waiting for it.

        Raises:
            TypeError: it is no number.
            ValueError: a tensor of another number of elements.
        """
        if not isinstance(value, Tensor):
            # a protocol's check is slow
            if not isinstance(value, float | int) and not isinstance(value, SupportsFloat):
                raise TypeError(f"{SCALAR}, got {value!r}")
            self.numbers[index] = float(value)
            return
        if value.numel() != 1:
            raise ValueError(f"{SCALAR}, got one of shape {tuple(value.shape)}")
        source = value.detach()
        source = source.to_local() if hasattr(source, "to_local") else source
        self.source.lane.send(source.reshape(()), self.scalars[index], self)


class Pool:
    """The slots of one source. Their number bounds what waits to be written.

    Slots are made when first needed: a schedule that never asks for a second one never pays it.
    """

    def __init__(self, make: Callable[[], Slot], count: int) -> None:
        self._make = make
        self._unmade, self._used = count, 0
        self._slots: list[Slot] = []
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each of the slots

    def take(self, *, wait: bool) -> Slot | None:
        """Return a free slot; when all are in use, wait for the writer or return None."""
        if self._free.empty() and self._unmade:
            slot = self._make()
            self._unmade, self._used = self._unmade - 1, self._used + 1
            return slot
        try:
            self._free.get(block=wait)
        except queue.Empty:
            return None
        return self._slots.pop()  # the last one used, which the processor's cache may still hold

    @property
    def busy(self) -> bool:
        """Whether the writer has rows, beside the one that was taken last."""
        return self._used - len(self._slots) > 1

    def give_back(self, slot: Slot) -> None:
        """Let `slot` be used again."""
        self._slots.append(slot)
        self._free.put(None)


class Lane:
    """The way from the device to the host: immediate on the CPU, a side stream on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, source: Tensor, target: Tensor, slot: Slot) -> None:
        """Copy `source` to memory in `slot`; on CUDA the call returns before the data."""
        if self._side is None or source.device.type != "cuda":
            target.copy_(source)
            return
        self._side.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            source.record_stream(self._side)
            cast(torch.cuda.Event, slot.ready).record(self._side)

    def send_sparse(self, grad: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
        """Copy indices and values of a sparse gradient to the host, equal indices not added up."""
        if grad.layout != torch.sparse_coo:
            grad = grad.to_sparse_coo()  # type: ignore[no-untyped-call]
        indices, values = grad._indices(), grad._values()
        pinned = grad.device.type == "cuda"
        hosts = (
            torch.empty_like(indices, device="cpu", pin_memory=pinned),
            torch.empty_like(values, device="cpu", pin_memory=pinned),
        )
        self.send(indices, hosts[0], slot)
        self.send(values, hosts[1], slot)
        return hosts

    def beside(self) -> AbstractContextManager[Any]:
        """Put the device's work in this block on the side stream, beside the training's."""
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def before_overwriting(self) -> None:
        """Order the training's stream after the transfers under way; the host does not wait."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)
