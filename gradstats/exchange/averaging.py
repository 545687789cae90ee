"""Buckets whose mean is all that a method asks for: one all-reduce, while backward goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradstats.exchange.buckets import Member, Piece, pieces_of
from gradstats.exchange.collectives import Group
from gradstats.exchange.reducing import fill_share


class Averaging:
    """The mean of one bucket, taken in place or in another dtype.

    Args:
        buffer: The bucket.
        members: Its parameters.
        dtype: Of the sums of large parameters; small ones are summed in their own.
        workers: Number of workers.

    Attributes:
        exact: Whether the mean is that of the gradients as they are.
    """

    def __init__(
        self, buffer: Tensor, members: Sequence[Member], dtype: torch.dtype, workers: int
    ) -> None:
        self._workers, self.exact = workers, dtype == buffer.dtype
        self._sums: list[tuple[Tensor, list[Piece]]] = []
        if self.exact:
            self._sums = [(buffer, [(slice(None), buffer)])]
            return
        for large in (True, False):
            grads = [member.grad for member in members if member.large == large]
            numel = sum(grad.numel() for grad in grads)
            if numel:
                sums = buffer.new_empty(numel, dtype=dtype if large else None)
                self._sums.append((sums, pieces_of(grads)))

    def fill(self) -> Tensor:
        """Put this worker's share of the mean into what is summed: whether all are finite."""
        flags = [
            fill_share(sums[part].view(view.shape), view, self._workers)
            for sums, pieces in self._sums
            for part, view in pieces
        ]
        return torch.stack(flags).all()

    def start(self, group: Group) -> Sequence[Callable[[], None]]:
        """Begin to sum; returns what waits for the end."""
        return [group.start_sum(sums) for sums, _ in self._sums]

    def finish(self) -> None:
        """Put the mean into the bucket."""
        if self.exact:
            return
        for sums, pieces in self._sums:
            for part, view in pieces:
                view.copy_(sums[part].view(view.shape))
