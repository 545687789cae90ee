"""Where each parameter lies in the vectors of a row, and which gradients fit there."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gradstats.recording.selection import row_widths
from gradstats.store import Parameter

#: Bytes of a row that one thread copies in about a millisecond.
SMALL = 4_000_000
#: Most elements that torch works on in one thread.
_SERIAL = 2**15 - 1


class RowLayout:
    """Where each parameter lies in the vectors of a row, whole or at sampled elements.

    Args:
        table: The parameters as the store lays them out.
        tensors: The parameters themselves, in the same order.
        element_ids: Sampled elements by dtype, sorted; None for whole rows.

    Attributes:
        table: The parameters.
        widths: Elements of a row by dtype.
        sampled: By the index of a parameter with sampled elements: their positions in it, and
            where they lie in the vector of its dtype.
        dense: Indices of the parameters with dense gradients.
        dtypes: Of the gradients; "" where they are sparse.
        shapes: Of the gradients.
    """

    def __init__(
        self,
        table: Sequence[Parameter],
        tensors: Sequence[nn.Parameter],
        element_ids: Mapping[str, np.ndarray] | None,
    ) -> None:
        self.table = list(table)
        self.widths = row_widths(table, element_ids)
        self.dense = {index for index, one in enumerate(table) if one.layout == "dense"}
        self.dtypes = [
            getattr(torch, one.dtype) if index in self.dense else ""
            for index, one in enumerate(table)
        ]
        self.shapes = [torch.Size(parameter.shape) for parameter in table]
        self.sampled: dict[int, tuple[Tensor, slice]] = {}
        for index in sorted(self.dense):
            self._sample(index, tensors[index].device, element_ids or {})

    def _sample(
        self, index: int, device: torch.device, element_ids: Mapping[str, np.ndarray]
    ) -> None:
        parameter = self.table[index]
        ids = element_ids.get(parameter.dtype, np.zeros(0, np.int64))
        span = (parameter.offset, parameter.offset + parameter.numel)
        start, stop = np.searchsorted(ids, span)
        if start < stop:
            positions = torch.from_numpy(ids[start:stop] - parameter.offset).to(device)
            self.sampled[index] = (positions, slice(int(start), int(stop)))

    @property
    def elements(self) -> int:
        """Elements of one row's vectors."""
        return sum(self.widths.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one row's vectors."""
        itemsize = {dtype: getattr(torch, dtype).itemsize for dtype in self.widths}
        return sum(width * itemsize[dtype] for dtype, width in self.widths.items())

    def views(self, flats: Mapping[str, Tensor]) -> list[Tensor]:
        """Each parameter's part of flat vectors, in its shape; sparse ones have none."""
        views = []
        for index, one in enumerate(self.table):
            numel, shape = (one.numel, one.shape) if index in self.dense else (0, (0,))
            views.append(flats[one.dtype][one.offset : one.offset + numel].view(shape))
        return views

    def check(self, index: int, grad: Tensor) -> None:
        """Check that a gradient fits its parameter.

        Raises:
            ValueError: It has another shape.
            TypeError: It has another dtype.
        """
        parameter = self.table[index]
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
    """The part of a parameter that lies on this process: of a sharded one (DTensor) the shard."""
    plain = tensor.detach()
    return cast(Tensor, plain.to_local()) if hasattr(plain, "to_local") else plain


def gradient_of(tensor: nn.Parameter) -> Tensor | None:
    """The gradient on this process: of a sharded parameter (DTensor) the local shard."""
    grad = tensor.grad
    if grad is not None and hasattr(grad, "to_local"):
        return cast(Tensor, grad.to_local())
    return grad


def in_pieces(
    views: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Cut what is copied into pieces so small that torch copies each in the calling thread.

    A team of threads would wait for the one that the writer keeps off its core: some
    milliseconds, ten times as long as the copy of a small row takes, and the copy of a large one
    would hold up the writer.

    Args:
        views: where the gradients are copied to, contiguous.
        grads: the gradients, in the same order and shapes.

    Returns:
        The pieces of both, in the same order.
    """
    pieces: tuple[list[Tensor], list[Tensor]] = ([], [])
    for view, grad in zip(views, grads, strict=True):
        numel = grad.numel()
        if numel <= _SERIAL or not grad.is_contiguous():
            pieces[0].append(view)
            pieces[1].append(grad)
        else:
            count = -(-numel // _SERIAL)
            pieces[0].extend(view.view(-1).chunk(count))
            pieces[1].extend(grad.view(-1).chunk(count))
    return pieces
