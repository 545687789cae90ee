"""Flat copies of gradients on their way to host memory, made without waiting for the device.

On the CPU a row is one fused copy into a preallocated buffer. On a CUDA device it is one fused
copy on the device in the training's own stream (so that later writes to the gradients cannot
reach it) and one transfer into pinned memory on a side stream, whose end is an event for the
writer. The training thread waits for neither.
"""

import itertools
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from gradstats.store import Parameter

Kind = Literal["full", "track"]
KINDS: tuple[Kind, ...] = ("full", "track")

LOSS, LEARNING_RATE = 0, 1  # places in Slot.scalars


def _empty(widths: Mapping[str, int], **where: Any) -> dict[str, Tensor]:
    return {
        dtype: torch.empty(width, dtype=getattr(torch, dtype), **{"device": "cpu", **where})
        for dtype, width in widths.items()
    }


class Slot:
    """Host memory of one row: filled by the training thread, read by the writer, used again.

    Attributes:
        kind: Which stream the row belongs to.
        step: The optimizer step of the row it holds.
        flat: One vector a dtype.
        present: One truth value a parameter: it had a gradient.
        scalars: float64 loss and learning rate, NaN where not known.
    """

    def __init__(self, kind: Kind, widths: Mapping[str, int], *, pinned: bool) -> None:
        self.kind = kind
        self.step = -1
        self.present = np.zeros(0, dtype=bool)
        self.flat = _empty(widths, pin_memory=pinned)
        self.scalars = torch.empty(2, dtype=torch.float64, device="cpu", pin_memory=pinned)
        self.ready = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the copies into this slot have arrived."""
        if self.ready is not None:
            self.ready.synchronize()


class Pool:
    """The slots of one stream. Their number bounds what waits to be written.

    Slots are made when first needed: a schedule that never asks for a second one never pays it.
    """

    def __init__(self, make: Callable[[], Slot], count: int) -> None:
        self._make = make
        self._unmade = count
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()

    def take(self) -> Slot:
        """Return a free slot, waiting for the writer when all are in use."""
        if self._free.empty() and self._unmade:
            slot = self._make()
            self._unmade -= 1
            return slot
        return self._free.get()

    def give_back(self, slot: Slot) -> None:
        """Let ``slot`` be used again."""
        self._free.put(slot)


class Lane:
    """The way from the device to the host: immediate on the CPU, a side stream on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, source: Tensor, target: Tensor, slot: Slot) -> None:
        """Copy ``source`` to host memory in ``slot``; on CUDA the call returns before the data."""
        if self._side is None or source.device.type != "cuda":
            target.copy_(source)
            return
        self._side.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            source.record_stream(self._side)
            cast(torch.cuda.Event, slot.ready).record(self._side)

    def before_overwriting(self) -> None:
        """Order the training's stream after the transfers under way; the host does not wait."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)


class Source:
    """Copies the gradients of some parameters, whole or at sampled elements, into slots.

    Args:
        table: The parameters as the store lays them out.
        tensors: The parameters themselves, in the same order.
        element_ids: Sampled elements by dtype, sorted; None for whole rows.
        slots: How many rows may wait to be written.

    Attributes:
        element_ids: As given.
        sparse: Name of a parameter whose gradient was sparse and is stored dense, if there was.
    """

    def __init__(
        self,
        table: Sequence[Parameter],
        tensors: Sequence[nn.Parameter],
        element_ids: Mapping[str, np.ndarray] | None,
        slots: int,
    ) -> None:
        self.element_ids = element_ids
        self.sparse: str | None = None
        self.kind: Kind = "full" if element_ids is None else "track"
        self._members = list(zip(table, tensors, strict=True))
        self._lane = Lane(tensors[0].device)
        self._widths = _widths(table, element_ids)
        pinned = self._lane.device.type == "cuda"
        self.pool = Pool(lambda: Slot(self.kind, self._widths, pinned=pinned), slots)
        self._scratch: dict[str, Tensor] = {}
        self._samples = [] if element_ids is None else self._place_samples(element_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        itemsize = {dtype: getattr(torch, dtype).itemsize for dtype in self._widths}
        return sum(width * itemsize[dtype] for dtype, width in self._widths.items())

    @property
    def elements(self) -> int:
        """Elements of one row."""
        return sum(self._widths.values())

    @property
    def parameters(self) -> int:
        """Parameters in the table."""
        return len(self._members)

    def stage(self, step: int) -> Slot:
        """Copy the gradients as they are now."""
        slot = self.pool.take()
        try:
            slot.step = step
            slot.scalars.fill_(torch.nan)
            slot.present = np.array([tensor.grad is not None for _, tensor in self._members])
            flats = slot.flat if self._lane.device.type == "cpu" else self._on_device()
            if self.kind == "track":
                self._gather(flats)
            else:
                self._pack(flats)
            for dtype in flats if flats is not slot.flat else ():
                self._lane.send(flats[dtype], slot.flat[dtype], slot)
        except BaseException:
            self.pool.give_back(slot)
            raise
        return slot

    def note(self, slot: Slot, place: int, value: object) -> None:
        """Put a number or a one-element tensor into ``slot.scalars`` without waiting for it."""
        source = value.detach() if isinstance(value, Tensor) else _number(value)
        self._lane.send(source.reshape(()), slot.scalars[place], slot)

    def _place_samples(
        self, element_ids: Mapping[str, np.ndarray]
    ) -> list[tuple[Parameter, nn.Parameter, Tensor, slice]]:
        samples = []
        for parameter, tensor in self._members:
            ids = element_ids.get(parameter.dtype, np.zeros(0, np.int64))
            span = (parameter.offset, parameter.offset + parameter.numel)
            start, stop = np.searchsorted(ids, span)
            if start < stop:
                local = torch.from_numpy(ids[start:stop] - parameter.offset).to(tensor.device)
                samples.append((parameter, tensor, local, slice(int(start), int(stop))))
        return samples

    def _gather(self, flats: Mapping[str, Tensor]) -> None:
        for parameter, tensor, ids, place in self._samples:
            if tensor.grad is None:
                flats[parameter.dtype][place].zero_()
            else:
                # take() indexes in the order of the shape whatever the strides are, uncopied
                grad = self._dense(parameter, tensor.grad)
                torch.take(grad, ids, out=flats[parameter.dtype][place])

    def _pack(self, flats: Mapping[str, Tensor]) -> None:
        for dtype, flat in flats.items():
            members = [member for member in self._members if member[0].dtype == dtype]
            for present, run in itertools.groupby(members, lambda m: m[1].grad is not None):
                self._pack_run(flat, list(run), present=present)

    def _pack_run(
        self, flat: Tensor, run: Sequence[tuple[Parameter, nn.Parameter]], *, present: bool
    ) -> None:
        last = run[-1][0]
        place = flat[run[0][0].offset : last.offset + last.numel]
        if not present:
            place.zero_()
            return
        grads = [self._dense(parameter, cast(Tensor, tensor.grad)) for parameter, tensor in run]
        torch.cat([grad.reshape(-1) for grad in grads], out=place)

    def _on_device(self) -> dict[str, Tensor]:
        """The flat buffers between the gradients and the host, once the last row has left them."""
        if not self._scratch:
            self._scratch = _empty(self._widths, device=self._lane.device)
        self._lane.before_overwriting()
        return self._scratch

    def _dense(self, parameter: Parameter, grad: Tensor) -> Tensor:
        if grad.dtype != getattr(torch, parameter.dtype):
            raise TypeError(
                f"cannot record {parameter.name!r}: its gradient is {grad.dtype} and the store "
                f"holds {parameter.dtype}; attach after the model has its final dtype"
            )
        if grad.layout != torch.strided:
            self.sparse = parameter.name
            return grad.detach().to_dense()
        return grad.detach()


def _number(value: object) -> Tensor:
    # said in full: a script may have changed torch's default dtype and device
    return torch.tensor(float(value), dtype=torch.float64, device="cpu")  # type: ignore[arg-type]


def _widths(
    table: Sequence[Parameter], element_ids: Mapping[str, np.ndarray] | None
) -> dict[str, int]:
    if element_ids is not None:
        return {dtype: len(ids) for dtype, ids in element_ids.items()}
    widths: dict[str, int] = {}
    for parameter in table:
        widths[parameter.dtype] = widths.get(parameter.dtype, 0) + parameter.numel
    return widths


def sample_elements(
    table: Sequence[Parameter], count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw ``count`` elements of a row uniformly without replacement; all when there are fewer.

    Returns:
        Sorted int64 positions in the flat vector of each dtype that has any.
    """
    widths = _widths(table, None)
    total = sum(widths.values())
    # numpy draws without replacement in memory proportional to count; torch would permute all
    drawn = np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False))
    ids: dict[str, np.ndarray] = {}
    start = 0
    for dtype, width in widths.items():
        first, last = np.searchsorted(drawn, (start, start + width))
        if first < last:
            ids[dtype] = drawn[first:last].astype(np.int64) - start
        start += width
    return ids
