"""Marks on gradients, which show whether one was changed or replaced since it was marked."""

import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Mark(NamedTuple):
    """One gradient as it was: which tensor, and how often it had been written to by then.

    Attributes:
        grad: a weak reference, which keeps no memory; None where there was no gradient.
        versions: autograd's counters of writes in place, of the tensor and of its local shard.
    """

    grad: "weakref.ref[Tensor] | None"
    versions: tuple[int, int]


class Marks:
    """The gradients of some parameters as they were when they were marked.

    A write in place counts up a tensor's version; a gradient that was freed and made again is
    another tensor. Writes through `.data` count nothing up and are not seen.

    Args:
        tensors: The parameters.
    """

    def __init__(self, tensors: Sequence[nn.Parameter]) -> None:
        self._tensors = tensors
        self._marks: dict[int, Mark] = {}

    def mark(self, indices: Iterable[int] | None = None) -> None:
        """Mark the gradients at these indices, or all, as they are now."""
        for index in range(len(self._tensors)) if indices is None else indices:
            grad = self._tensors[index].grad
            reference = None if grad is None else weakref.ref(grad)
            self._marks[index] = Mark(reference, _versions(grad))

    def changed(self, indices: Iterable[int] | None = None) -> set[int]:
        """Those of the indices, or of all marked ones, whose gradient is not as it was marked."""
        return {
            index for index in (self._marks if indices is None else indices) if self._is(index)
        }

    def clear(self) -> None:
        """Take all marks off."""
        self._marks = {}

    def forget(self) -> None:
        """Let go of the parameters."""
        self._tensors, self._marks = [], {}

    def _is(self, index: int) -> bool:
        """Whether the gradient at an index has changed since its mark, or has no mark."""
        mark, grad = self._marks.get(index), self._tensors[index].grad
        if mark is None:
            return True
        if mark.grad is None or grad is None:
            return mark.grad is not None or grad is not None
        return mark.grad() is not grad or mark.versions != _versions(grad)


def _versions(grad: Tensor | None) -> tuple[int, int]:
    if grad is None:
        return (-1, -1)
    local = getattr(grad, "_local_tensor", None)  # of a DTensor
    return grad._version, -1 if local is None else local._version
