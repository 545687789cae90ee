"""Flat copies of gradients on their way to the writer, made without waiting for the device.

On the CPU a row is one call that copies into a preallocated buffer. On a CUDA device it is one
fused copy on the device in the training's own stream (so that later writes to the gradients cannot
reach it) and one transfer into pinned memory on a side stream, whose end is an event for the
writer. The training thread waits for neither.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gradstats.recording.selection import row_widths
from gradstats.recording.slots import Kind, Lane, Point, Pool, Slot, empty
from gradstats.store import Parameter

#: Bytes of one row beside its elements and its present table: coordinates and padding.
_COORDINATE_BYTES = 160


class Source:
    """Copies the gradients of some parameters, whole or at sampled elements, into slots.

    A row is made in one go with `stage`, or piece by piece with `begin`, `put` and `end`.

    Args:
        table: The parameters as the store lays them out.
        tensors: The parameters themselves, in the same order.
        kind: Whole rows, sampled elements, or whole rows that become Summaries.
        point: Where in the step the gradients are taken.
        slots: How many rows may wait to be written.
        element_ids: Sampled elements by dtype, sorted; None for whole rows.
        wait: Wait for the writer when all slots are in use, rather than stage nothing.
        weights: Copy the parameters' values too, of whole rows.

    Attributes:
        cost: Bytes that one row takes on disk, sparse gradients aside.
        densified: Name of a parameter that got a sparse gradient and has a dense place, if any.
        fires: How often each parameter was put since `begin`.
    """

    def __init__(
        self,
        table: Sequence[Parameter],
        tensors: Sequence[nn.Parameter],
        kind: Kind,
        point: Point,
        *,
        slots: int,
        element_ids: Mapping[str, np.ndarray] | None = None,
        wait: bool = True,
        weights: bool = False,
    ) -> None:
        self.weights = weights and kind == "full"
        self.kind, self.point, self.element_ids = kind, point, element_ids
        self.densified: str | None = None
        self.fires = [0] * len(table)
        self.lane = Lane(tensors[0].device)
        self._wait = wait
        self._tensors = list(tensors)
        self._members = list(zip(table, tensors, strict=True))
        self._everyone = np.ones(len(table), dtype=bool)  # of many slots at a time
        self._everyone.flags.writeable = False
        self._widths = row_widths(table, element_ids)
        self.cost = self._cost()
        self.pool = Pool(lambda: Slot(self, self._widths, self.lane.device), slots)
        dense = [p.layout == "dense" for p in table]
        self._dtypes = [
            getattr(torch, p.dtype) if d else "" for p, d in zip(table, dense, strict=True)
        ]
        self._sharded = any(hasattr(tensor, "to_local") for tensor in tensors)
        self._scratch: dict[str, Tensor] = {}
        self._weight_scratch: dict[str, Tensor] = {}
        self._views: list[Tensor] = []
        self._scratch_views: list[Tensor] = []
        self._samples = self._place_samples(element_ids or {})
        self._shapes = [torch.Size(parameter.shape) for parameter in table]
        self._slot: Slot | None = None
        self._flats: Mapping[str, Tensor] = {}
        self._weighed: set[int] = set()  # parameters whose values are copied already

    @property
    def nbytes(self) -> int:
        """Bytes of one row's vectors."""
        itemsize = {dtype: getattr(torch, dtype).itemsize for dtype in self._widths}
        once: int = sum(width * itemsize[dtype] for dtype, width in self._widths.items())
        return (2 if self.weights else 1) * once

    @property
    def elements(self) -> int:
        """Elements of one row's vectors."""
        return sum(self._widths.values())

    @property
    def parameters(self) -> int:
        """Parameters in the table."""
        return len(self._members)

    @property
    def table(self) -> list[Parameter]:
        """The parameters as this process holds them."""
        return [parameter for parameter, _ in self._members]

    def _cost(self) -> int:
        # a Summary takes at most about 14 KB a parameter, and never more than the gradient
        few = self.nbytes if self.kind != "summary" else 14_000 * self.parameters
        return min(self.nbytes, few) + self.parameters + _COORDINATE_BYTES

    def shape(self, place: int) -> tuple[int, ...]:
        """The shape of a parameter."""
        return self._members[place][0].shape

    @property
    def slot(self) -> Slot | None:
        """The row that is being made."""
        return self._slot

    def stage(self, step: int) -> Slot | None:
        """Copy the gradients as they are now; None where no slot is free."""
        if not self._take_slot(step):
            return None
        try:
            if self.kind == "track":
                self._sample_all()
            else:
                self._copy_all()
            return self._finished()
        except BaseException:
            self.abandon()
            raise

    def patch(self, slot: Slot, places: Iterable[int]) -> None:
        """Copy some gradients, as they are now, into a row that was staged and not handed over."""
        self._slot = slot
        self._flats = slot.flat if self._direct else self._on_device()
        slot.present = slot.present.copy()
        try:
            for place in places:
                grad = gradient_of(self._members[place][1])
                slot.present[place] = grad is not None
                slot.sparse.pop(place, None)
                self._copy(place, grad)
            self._send()
        finally:
            self._slot = None

    def begin(self, step: int) -> bool:
        """Start a row to be made of pieces; False where no slot is free."""
        if not self._take_slot(step):
            return False
        cast(Slot, self._slot).present = np.zeros(len(self._members), dtype=bool)
        self.fires = [0] * len(self._members)
        return True

    def _take_slot(self, step: int) -> bool:
        self.abandon()
        slot = self._slot = self.pool.take(wait=self._wait)
        if slot is None:
            return False
        slot.step = step
        slot.numbers[:] = np.nan
        slot.sparse, slot.facts = {}, {}
        self._weighed = set()
        self._flats = slot.flat if self._direct else self._on_device()
        if self.kind != "track":
            self._views = slot.views = slot.views or self._laid_out(slot.flat)
            if not self._direct:
                self._views = self._scratch_views
        return True

    def put(self, place: int, grad: Tensor | None = None, *, add: bool = False) -> None:
        """Copy the gradient of one parameter, or one given in its stead, as it is now.

        With `add`, a gradient that is given is added to what was put before.
        """
        slot = cast(Slot, self._slot)
        grad = gradient_of(self._members[place][1]) if grad is None else grad
        add = add and self.fires[place] > 0
        self.fires[place] += 1
        slot.present[place] = grad is not None
        if add and grad is not None:
            self._add(place, grad)
        else:
            self._copy(place, grad)

    def _add(self, place: int, grad: Tensor) -> None:
        """Add a dense gradient to what the row holds of its parameter."""
        parameter, _ = self._members[place]
        dense = self._dense(parameter, grad)
        if self.kind != "track":
            self._views[place].add_(dense)
        elif place in self._samples:
            ids, span = self._samples[place]
            self._flats[parameter.dtype][span].add_(torch.take(dense, ids))

    def _copy(self, place: int, grad: Tensor | None) -> None:
        parameter, _ = self._members[place]
        if parameter.layout == "sparse":
            if grad is not None and self.kind != "track":
                self._keep_sparse(place, grad)
            return
        if grad is None:
            self._clear(place)
        elif self.kind != "track":
            self._views[place].copy_(self._dense(parameter, grad))
        elif place in self._samples:
            ids, span = self._samples[place]
            # take() indexes in the order of the shape whatever the strides are, uncopied
            torch.take(self._dense(parameter, grad), ids, out=self._flats[parameter.dtype][span])

    def forget(self, places: Iterable[int]) -> None:
        """What was put of these parameters is no gradient of this step."""
        for place in places:
            cast(Slot, self._slot).present[place] = False
            cast(Slot, self._slot).sparse.pop(place, None)
            self.fires[place] = 0

    def end(self) -> Slot:
        """Finish the row: what was never put has no gradient."""
        slot = cast(Slot, self._slot)
        for place in np.flatnonzero(~slot.present):
            self._clear(int(place))
        return self._finished()

    def _finished(self) -> Slot:
        slot = cast(Slot, self._slot)
        if self.weights:
            self.weigh(range(len(self._members)))
            flats = {} if self._direct else self._weight_scratch
            for dtype in flats:
                self.lane.send(flats[dtype], slot.weights[dtype], slot)
        return self._send()

    def _send(self) -> Slot:
        """The gradients on their way to the host."""
        slot = cast(Slot, self._slot)
        if self._direct and slot.ready is not None:
            slot.ready.record()
        for dtype in () if self._direct else self._flats:
            self.lane.send(self._flats[dtype], slot.flat[dtype], slot)
        kept = sum(i.nbytes + v.nbytes for i, v in slot.sparse.values())
        slot.cost = self.cost + kept
        self._slot = None
        return slot

    def weigh(self, places: Iterable[int]) -> None:
        """Copy values that gradients were taken at, once per row, before a step changes them."""
        slot = cast(Slot, self._slot)
        flats = slot.weights
        if not self._direct:
            flats = self._weight_scratch = self._weight_scratch or empty(
                self._widths, device=self.lane.device
            )
            self.lane.before_overwriting()
        left = [i for i in places if i not in self._weighed]
        dense = [i for i in left if self._members[i][0].layout == "dense"]
        views = self._laid_out(flats)
        if dense:
            values = [local(self._tensors[i]) for i in dense]
            torch._foreach_copy_([views[i] for i in dense], values)
        self._weighed.update(left)

    def abandon(self) -> None:
        """Drop the row that is being made, if there is one."""
        if self._slot is not None:
            self.pool.give_back(self._slot)
            self._slot = None

    @property
    def _direct(self) -> bool:
        """Is the slot on the gradients' device?"""
        return self.lane.device.type == "cpu" or self.kind == "summary"

    def _clear(self, place: int) -> None:
        """Put zeros in the place of a parameter."""
        parameter, _ = self._members[place]
        if self.kind != "track":
            self._views[place].zero_()
        elif place in self._samples:
            self._flats[parameter.dtype][self._samples[place][1]].zero_()

    def _laid_out(self, flats: Mapping[str, Tensor]) -> list[Tensor]:
        """The place of each parameter in flat vectors, in its shape; sparse ones have none."""
        found = []
        for p, _ in self._members:
            numel, shape = (p.numel, p.shape) if p.layout == "dense" else (0, (0,))
            found.append(flats[p.dtype][p.offset : p.offset + numel].view(shape))
        return found

    def _place_samples(
        self, element_ids: Mapping[str, np.ndarray]
    ) -> dict[int, tuple[Tensor, slice]]:
        samples = {}
        for place, (parameter, tensor) in enumerate(self._members):
            ids = element_ids.get(parameter.dtype, np.zeros(0, np.int64))
            span = (parameter.offset, parameter.offset + parameter.numel)
            start, stop = np.searchsorted(ids, span)
            if start < stop and parameter.layout == "dense":
                local = torch.from_numpy(ids[start:stop] - parameter.offset).to(tensor.device)
                samples[place] = (local, slice(int(start), int(stop)))
        return samples

    def _copy_all(self) -> None:
        """All parameters at once, but for those without a gradient or with a sparse one."""
        slot = cast(Slot, self._slot)
        grads = [tensor.grad for tensor in self._tensors]
        if self._sharded:
            grads = [gradient_of(tensor) for tensor in self._tensors]
        dtypes, shapes = self._dtypes, self._shapes  # others would be cast, or broadcast
        alone = [
            i
            for i, g in enumerate(grads)
            if g is None or g.dtype is not dtypes[i] or g.shape != shapes[i]
        ]
        views, others = self._views, cast(list[Tensor], grads)
        slot.present = self._everyone
        if alone:
            slot.present = np.array([grad is not None for grad in grads])
            together = sorted(set(range(len(grads))).difference(alone))
            views, others = [views[i] for i in together], [others[i] for i in together]
        try:
            torch._foreach_copy_(views, others)
        except RuntimeError:  # a gradient is sparse, and its module did not say that it would be
            alone = list(range(len(grads)))
        for place in alone:
            self._copy(place, grads[place])

    def _sample_all(self) -> None:
        """The sampled elements of all parameters that have any."""
        slot = cast(Slot, self._slot)
        slot.present = np.array([tensor.grad is not None for tensor in self._tensors])
        for place in self._samples:
            self._copy(place, gradient_of(self._members[place][1]))

    def _keep_sparse(self, place: int, grad: Tensor) -> None:
        """Copy indices and values as they are; the writer adds up those that repeat."""
        slot = cast(Slot, self._slot)
        self._check(self._members[place][0], grad)
        if grad.layout != torch.sparse_coo:
            grad = grad.to_sparse_coo()  # type: ignore[no-untyped-call]
        grad = grad.detach()
        parts = (grad._indices(), grad._values())
        pinned = grad.device.type == "cuda"
        hosts = [torch.empty_like(p, device="cpu", pin_memory=pinned) for p in parts]
        for part, host in zip(parts, hosts, strict=True):
            self.lane.send(part, host, slot)
        slot.sparse[place] = (hosts[0], hosts[1])

    def _on_device(self) -> dict[str, Tensor]:
        """The flat buffers between the gradients and the host, once the last row has left them."""
        if not self._scratch:
            self._scratch = empty(self._widths, device=self.lane.device)
            self._scratch_views = [] if self.kind == "track" else self._laid_out(self._scratch)
        self.lane.before_overwriting()
        return self._scratch

    def _dense(self, parameter: Parameter, grad: Tensor) -> Tensor:
        self._check(parameter, grad)
        if grad.layout != torch.strided:
            self.densified = parameter.name
            return grad.detach().to_dense()
        return grad.detach()

    def _check(self, parameter: Parameter, grad: Tensor) -> None:
        if grad.shape != parameter.shape:
            raise ValueError(
                f"cannot record {parameter.name!r}: its gradient is {tuple(grad.shape)} and the "
                f"store holds {parameter.shape}; attach after the model has its final shapes"
            )
        if grad.dtype != getattr(torch, parameter.dtype):
            raise TypeError(
                f"cannot record {parameter.name!r}: its gradient is {grad.dtype} and the store "
                f"holds {parameter.dtype}; attach after both have their final dtype"
            )


def local(tensor: Tensor) -> Tensor:
    """What of a parameter lies on this process: of a sharded one (DTensor) the shard."""
    found = tensor.detach()
    return cast(Tensor, found.to_local()) if hasattr(found, "to_local") else found


def gradient_of(tensor: nn.Parameter) -> Tensor | None:
    """The gradient on this process: of a sharded parameter (DTensor) the local shard."""
    grad = tensor.grad
    if grad is not None and hasattr(grad, "to_local"):
        return cast(Tensor, grad.to_local())
    return grad
