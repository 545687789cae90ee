"""Flat copies of gradients on their way to the writer, made without waiting for the device.

On the CPU a row is one call that copies into a preallocated buffer. On a CUDA device it is one
fused copy in the training's own stream (so that later writes to the gradients cannot reach it) and
one transfer into pinned memory on a side stream, whose end is an event for the writer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gradstats.recording.row_layout import SMALL, RowLayout, gradient_of, in_pieces
from gradstats.recording.slots import Kind, Lane, Point, Pool, Slot, empty, waiting
from gradstats.recording.weight_copies import WeightCopies
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
        element_ids: Mapping[str, np.ndarray] | None = None,
        wait: bool = True,
        weights: bool = False,
    ) -> None:
        self.weights = weights and kind == "full"
        self.kind, self.point, self.element_ids = kind, point, element_ids
        self.densified: str | None = None
        self.fires = [0] * len(table)
        self.lane = Lane(tensors[0].device)
        self._wait, self._tensors = wait, list(tensors)
        self._layout = RowLayout(table, tensors, element_ids)
        self._weights = WeightCopies(self._layout, self._tensors, self.lane, direct=self._direct)
        self._everyone = np.ones(len(table), dtype=bool)  # of many slots at a time
        self._everyone.flags.writeable = False
        self.cost = self._cost()
        slots = waiting(kind, self.nbytes)
        self.pool = Pool(lambda: Slot(self, self._layout.widths, self.lane.device), slots)
        self._sharded = any(hasattr(tensor, "to_local") for tensor in tensors)
        self._scratch: dict[str, Tensor] = {}
        self._views, self._scratch_views = list[Tensor](), list[Tensor]()
        self._slot: Slot | None = None
        self._flats: Mapping[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of one row's vectors."""
        return (2 if self.weights else 1) * self._layout.nbytes

    @property
    def elements(self) -> int:
        """Elements of one row's vectors."""
        return self._layout.elements

    @property
    def table(self) -> list[Parameter]:
        """The parameters as this process holds them."""
        return self._layout.table

    def _cost(self) -> int:
        # a Summary takes at most about 14 KB a parameter, and never more than the gradient
        few = self.nbytes if self.kind != "summary" else 14_000 * len(self._tensors)
        return min(self.nbytes, few) + len(self._tensors) + _COORDINATE_BYTES

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

    def patch(self, slot: Slot, indices: Iterable[int]) -> None:
        """Copy some gradients, as they are now, into a row that was staged and not handed over."""
        self._slot = slot
        self._flats = slot.flat if self._direct else self._on_device()
        slot.present = slot.present.copy()
        try:
            for index in indices:
                grad = gradient_of(self._tensors[index])
                slot.present[index] = grad is not None
                slot.sparse.pop(index, None)
                self._copy(index, grad)
            self._send()
        finally:
            self._slot = None

    def begin(self, step: int) -> bool:
        """Start a row to be made of pieces; False where no slot is free."""
        if not self._take_slot(step):
            return False
        cast(Slot, self._slot).present = np.zeros(len(self._tensors), dtype=bool)
        self.fires = [0] * len(self._tensors)
        return True

    def _take_slot(self, step: int) -> bool:
        self.abandon()
        slot = self._slot = self.pool.take(wait=self._wait)
        if slot is None:
            return False
        slot.step = step
        slot.numbers[:] = np.nan
        slot.sparse, slot.facts = {}, {}
        self._weights.begin()
        self._flats = slot.flat if self._direct else self._on_device()
        if self.kind != "track":
            self._views = slot.views = slot.views or self._layout.views(slot.flat)
            if not self._direct:
                self._views = self._scratch_views
        return True

    def put(self, index: int, grad: Tensor | None = None, *, add: bool = False) -> None:
        """Copy the gradient of one parameter, or one given in its stead, as it is now.

        With `add`, a gradient that is given is added to what was put before.
        """
        slot = cast(Slot, self._slot)
        grad = gradient_of(self._tensors[index]) if grad is None else grad
        add = add and self.fires[index] > 0
        self.fires[index] += 1
        slot.present[index] = grad is not None
        if add and grad is not None:
            self._add(index, grad)
        else:
            self._copy(index, grad)

    def _add(self, index: int, grad: Tensor) -> None:
        """Add a dense gradient to what the row holds of its parameter."""
        dense, part = self._dense(index, grad), self._part(index)
        if part is not None:
            sampled = self.kind == "track"
            part.add_(torch.take(dense, self._layout.sampled[index][0]) if sampled else dense)

    def _copy(self, index: int, grad: Tensor | None) -> None:
        if index not in self._layout.dense:
            if grad is not None and self.kind != "track":
                self._keep_sparse(index, grad)
            return
        part = self._part(index)
        if part is None:
            return
        if grad is None:
            part.zero_()
        elif self.kind != "track":
            part.copy_(self._dense(index, grad))
        else:
            # take() indexes in the order of the shape whatever the strides are, uncopied
            torch.take(self._dense(index, grad), self._layout.sampled[index][0], out=part)

    def _part(self, index: int) -> Tensor | None:
        """A dense parameter's part of the row; None where no element of it is sampled."""
        if self.kind != "track":
            return self._views[index]
        if index not in self._layout.sampled:
            return None
        return self._flats[self.table[index].dtype][self._layout.sampled[index][1]]

    def forget(self, indices: Iterable[int]) -> None:
        """What was put of these parameters is no gradient of this step."""
        for index in indices:
            cast(Slot, self._slot).present[index] = False
            cast(Slot, self._slot).sparse.pop(index, None)
            self.fires[index] = 0

    def end(self) -> Slot:
        """Finish the row: what was never put has no gradient."""
        slot = cast(Slot, self._slot)
        for index in np.flatnonzero(~slot.present):
            self._copy(int(index), None)
        return self._finished()

    def _finished(self) -> Slot:
        if self.weights:
            self._weights.finish(cast(Slot, self._slot))
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

    def weigh(self, indices: Iterable[int]) -> None:
        """Copy values that gradients were taken at, once per row, before a step changes them."""
        self._weights.copy(indices, cast(Slot, self._slot))

    def abandon(self) -> None:
        """Drop the row that is being made, if there is one."""
        if self._slot is not None:
            self.pool.give_back(self._slot)
            self._slot = None

    @property
    def _direct(self) -> bool:
        """Whether the slot is on the gradients' device."""
        return self.lane.device.type == "cpu" or self.kind == "summary"

    def _copy_all(self) -> None:
        """All parameters at once, but for those without a gradient or with a sparse one."""
        slot = cast(Slot, self._slot)
        grads = [tensor.grad for tensor in self._tensors]
        if self._sharded:
            grads = [gradient_of(tensor) for tensor in self._tensors]
        dtypes, shapes = self._layout.dtypes, self._layout.shapes
        alone = [  # others would be cast, or broadcast
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
            if self.lane.device.type == "cpu" and (self.nbytes <= SMALL or self.pool.busy):
                views, others = in_pieces(views, others)
            torch._foreach_copy_(views, others)
        except RuntimeError:  # a gradient is sparse, and its module did not say that it would be
            alone = list(range(len(grads)))
        for index in alone:
            self._copy(index, grads[index])

    def _sample_all(self) -> None:
        """The sampled elements of all parameters that have any."""
        slot = cast(Slot, self._slot)
        slot.present = np.array([tensor.grad is not None for tensor in self._tensors])
        for index in self._layout.sampled:
            self._copy(index, gradient_of(self._tensors[index]))

    def _keep_sparse(self, index: int, grad: Tensor) -> None:
        """Copy indices and values as they are; the writer adds up those that repeat."""
        slot = cast(Slot, self._slot)
        self._layout.check(index, grad)
        slot.sparse[index] = self.lane.send_sparse(grad.detach(), slot)

    def _on_device(self) -> dict[str, Tensor]:
        """The flat buffers between the gradients and the host, once the last row has left them."""
        if not self._scratch:
            self._scratch = empty(self._layout.widths, device=self.lane.device)
            self._scratch_views = [] if self.kind == "track" else self._layout.views(self._scratch)
        self.lane.before_overwriting()
        return self._scratch

    def _dense(self, index: int, grad: Tensor) -> Tensor:
        self._layout.check(index, grad)
        if grad.layout != torch.strided:
            self.densified = self.table[index].name
            return grad.detach().to_dense()
        return grad.detach()
