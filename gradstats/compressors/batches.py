"""Factors of the matrices of a bucket, in one vector, and products with those matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gradstats.compressors.matrices import as_matrix
from gradstats.compressors.rounds import Exchange, Exchanges, State, Step, Terms, several
from gradstats.compressors.steps import PayloadMean, averaged
from gradstats.kernels.multiplying import multiply, multiply_sum
from gradstats.kernels.ranges import WINDOW, in_range
from gradstats.payloads.low_rank import LowRank

LOST = 2.0**-60  # a product whose largest element is below may have lost digits
SAFE = 60  # exponent of 2, up to which a matrix times a basis is in range
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of r columns each, one per matrix.

    Those of one height lie side by side, so that a block of them is one tensor. Every number is
    computed within its own factor. Which others share the vector decides where a factor begins, by
    which BLAS and LAPACK round: that is the same on all workers.

    Attributes:
        flat: `[r (h1 + h2 + …)]`, what an all-reduce adds.
        heights: h, in the order of the matrices.
        rank: r.
    """

    flat: Tensor
    heights: tuple[int, ...]
    rank: int

    @classmethod
    def empty(cls, heights: Sequence[int], rank: int, like: Tensor) -> Factors:
        """Return factors to be filled in, in the dtype of another tensor."""
        return cls(like.new_empty(rank * sum(heights)), tuple(heights), rank)

    @classmethod
    def stacked(cls, factors: Sequence[Tensor]) -> Factors:
        """Return copies of several factors, `[h, r]` each."""
        heights = tuple(map(len, factors))
        flat = torch.cat([factors[index].reshape(-1) for index in _by_height(heights)])
        return cls(flat, heights, factors[0].shape[1])

    def of(self, flat: Tensor) -> Factors:
        """Return factors of the same heights that lie in another vector."""
        return replace(self, flat=flat)

    def mapped(self, blocks: Sequence[Tensor]) -> Factors:
        """Return factors of the same heights from their blocks."""
        return self.of(torch.cat([block.reshape(-1) for block in blocks]))

    @cached_property
    def each(self) -> list[Tensor]:
        """Views, `[h, r]`, in the order of the matrices."""
        order = _by_height(self.heights)
        parts = torch.split(self.flat.view(-1, self.rank), [self.heights[i] for i in order])
        return _in_order(order, parts)

    @cached_property
    def blocks(self) -> list[Tensor]:
        """Views, `[factors, h, r]`, one per height."""
        counts = [(h, len(list(alike))) for h, alike in groupby(sorted(self.heights))]
        parts = torch.split(self.flat, [h * count * self.rank for h, count in counts])
        return [
            part.view(count, h, self.rank) for part, (h, count) in zip(parts, counts, strict=True)
        ]


@dataclass(frozen=True)
class Batch:
    """Gradients that are matrices of one dtype.

    Attributes:
        grads: in their shapes.
        matrices: the same as matrices.
        states: of the compressor.
        terms: whose sum is first to be put into each gradient, where there are any.
    """

    grads: Sequence[Tensor]
    matrices: Sequence[Tensor]
    states: Sequence[State]
    terms: Sequence[Terms]

    def turned(self, which: Sequence[bool]) -> Batch:
        """Return the batch with some of its matrices transposed, sums put into these."""
        for matrix, pair, turn in zip(self.matrices, self.terms, which, strict=True):
            if pair and turn:
                torch.add(*(term.view(matrix.shape) for term in pair), out=matrix)
        return replace(
            self,
            matrices=[m.T if turn else m for m, turn in zip(self.matrices, which, strict=True)],
            terms=[None if turn else pair for pair, turn in zip(self.terms, which, strict=True)],
        )


class LowRankMethod(Protocol):
    """A compressor that exchanges batches."""

    @property
    def rank(self) -> int:
        """Columns of the factors."""

    def exchange_batch(self, batch: Batch) -> Exchange[list[Step]]:
        """Exchange the matrices of a batch together."""

    def dense(self, grad: Tensor, state: State) -> Exchange[Step]:
        """See `Compressor.dense`."""


def peaks(*factors: Factors) -> list[list[float]]:
    """Return the largest magnitude of each factor, NaN if there is one.

    Args:
        factors: whose peaks are read from the device at once.
    """
    of_blocks = [block.abs().amax((1, 2)).double() for each in factors for block in each.blocks]
    read = iter(torch.cat(of_blocks).tolist())
    return [
        _in_order(_by_height(each.heights), [next(read) for _ in each.heights]) for each in factors
    ]


def products(
    batch: Batch, bases: Factors, peak: float = 1.0
) -> tuple[list[Tensor], list[float], Factors]:
    """Multiply each matrix by its basis, in a unit in which nothing leaves the range.

    The small product shows whether a matrix is extreme, and all are read at once: only an extreme
    one, or one of zeros, is read whole, and multiplied again in its own unit.

    Args:
        batch: of matrices `[h, w]`, which become the sums of their terms.
        bases: `[w, r]` each.
        peak: largest magnitude of the bases, a power of two up to 2^30.

    Returns:
        The matrices in their units, the units, and the products in these units.
    """
    matrices = batch.matrices
    out = Factors.empty([len(matrix) for matrix in matrices], bases.rank, bases.flat)
    for matrix, basis, product, pair in zip(
        matrices, bases.each, out.each, batch.terms, strict=True
    ):
        if pair:
            a, b = (term.view(matrix.shape) for term in pair)
            multiply_sum((a, b), matrix, basis, product)
        else:
            multiply(matrix, basis, product)
    scaled, units = list(matrices), [1.0] * len(matrices)
    for index, largest in enumerate(peaks(out)[0]):
        if not LOST * peak <= largest <= 2.0**WINDOW:
            scaled[index], units[index] = in_range(matrices[index], SAFE)
            multiply(scaled[index], bases.each[index], out.each[index])
    return scaled, units, out


def payloads(left: Factors, right: Factors) -> list[LowRank]:
    """Return the payloads P Qᵀ, whose peaks are read from the device at once."""
    measured = zip(*peaks(left, right), strict=True)
    pairs = zip(left.each, right.each, measured, strict=True)
    return [LowRank.measured(p, q, both) for p, q, both in pairs]


def mean_step(sent: LowRank, grad: Tensor, state: State) -> Step:
    """Return the step whose update is a mean P Qᵀ, in shape and dtype of the gradient."""
    return averaged(PayloadMean((sent,), grad.shape, grad.dtype, grad.device), sent, state)


def in_batches(
    method: LowRankMethod, grads: Sequence[Tensor], states: Sequence[State], terms: Sequence[Terms]
) -> Exchanges[list[Step]]:
    """Run the exchanges of several gradients: one for the matrices of a dtype, dense ones alone.

    Args:
        method: compressor.
        grads: of any shape.
        states: in the same order.
        terms: of which gradients are still to become the sums; none, or one per gradient.
    """
    pairs = list(terms) or [None] * len(grads)
    kinds: dict[Any, list[int]] = {}
    matrices = [as_matrix(grad, method.rank) for grad in grads]
    for index, matrix in enumerate(matrices):
        kinds.setdefault(index if matrix is None else matrix.dtype, []).append(index)
    exchanges = []
    for indices in kinds.values():
        columns: Any = ([each[i] for i in indices] for each in (grads, matrices, states, pairs))
        batch = Batch(*columns)
        dense = matrices[indices[0]] is None
        exchanges.append(_dense(method, batch) if dense else method.exchange_batch(batch))
    steps = list(chain(*(yield from several(exchanges))))
    return _in_order(list(chain(*kinds.values())), steps)


def _dense(method: LowRankMethod, batch: Batch) -> Exchange[list[Step]]:
    """Exchange a gradient uncompressed."""
    (grad,), (state,), (pair,) = batch.grads, batch.states, batch.terms
    if pair:
        torch.add(*pair, out=grad)
    return [(yield from method.dense(grad, state))]


def _by_height(heights: Sequence[int]) -> list[int]:
    """Indices of the matrices in the order of the vector."""
    return sorted(range(len(heights)), key=heights.__getitem__)


def _in_order(order: Sequence[int], values: Sequence[T]) -> list[T]:
    """Values that are in the order of the vector, in that of the matrices."""
    by_index = dict(zip(order, values, strict=True))
    return [by_index[index] for index in range(len(order))]
