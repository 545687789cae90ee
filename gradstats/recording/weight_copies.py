"""Copies of the parameters' values that go with a row."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gradstats.recording.row_layout import RowLayout, local
from gradstats.recording.slots import Lane, Slot, empty


class WeightCopies:
    """Copies values of parameters into a row, once each, before a step changes them.

    Args:
        layout: Where each parameter lies in a row.
        tensors: The parameters.
        lane: The way to the host.
        direct: The row's memory is on the parameters' device.
    """

    def __init__(
        self, layout: RowLayout, tensors: Sequence[nn.Parameter], lane: Lane, *, direct: bool
    ) -> None:
        self._layout, self._tensors, self._lane, self._direct = layout, tensors, lane, direct
        self._scratch: dict[str, Tensor] = {}
        self._copied: set[int] = set()

    def begin(self) -> None:
        """A new row holds no values yet."""
        self._copied = set()

    def copy(self, indices: Iterable[int], slot: Slot) -> None:
        """Copy the values at some indices that the row does not hold yet."""
        flats = slot.weights
        if not self._direct:
            if not self._scratch:
                self._scratch = empty(self._layout.widths, device=self._lane.device)
            flats = self._scratch
            self._lane.before_overwriting()
        left = [index for index in indices if index not in self._copied]
        dense = [index for index in left if index in self._layout.dense]
        views = self._layout.views(flats)
        if dense:
            values = [local(self._tensors[index]) for index in dense]
            torch._foreach_copy_([views[index] for index in dense], values)
        self._copied.update(left)

    def finish(self, slot: Slot) -> None:
        """Copy what is left, and send all values on their way to the host."""
        self.copy(range(len(self._tensors)), slot)
        for dtype, values in self._scratch.items():  # none where the copies are direct
            self._lane.send(values, slot.weights[dtype], slot)
