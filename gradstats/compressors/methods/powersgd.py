from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.batches import (
    Batch,
    Factors,
    in_batches,
    mean_step,
    payloads,
    products,
)
from gradstats.compressors.contracts import Contract
from gradstats.compressors.matrices import (
    FACTOR_BITS,
    as_matrix,
    check_rank,
    gaussian,
    orthonormal,
)
from gradstats.compressors.rounds import (
    AllReduce,
    Collective,
    Exchange,
    Exchanges,
    State,
    Step,
    Terms,
    fused,
)
from gradstats.compressors.short_forms import Joint
from gradstats.compressors.states import first_state
from gradstats.kernels.multiplying import multiply
from gradstats.kernels.ranges import from_unit
from gradstats.rng import Rng

START = (0x50575247, 0x53474400)  # key of the first Q
LIFT = 2.0**16  # of M Q, of which only the span counts: what is tiny keeps its digits
NEAR_THE_END = 2.0**90  # of the mean over workers, which is the same on all of them


@dataclass(frozen=True)
class PowerSGD(Joint):
    r"""One step of a power iteration over all workers, started from the last gradient's.

    For M of n1 by n2, the gradient by its first dimension and the others, over workers w:

    .. math:: P = \operatorname{orth}\Big(\frac1n \sum_w M_w Q\Big), \quad
              Q' = \frac1n \sum_w M_w^T P, \quad \hat M = P Q'^T

    and Q' starts the next step. Two dependent all-reduces of r n1 and r n2 elements. P is
    orthonormal, so for one worker ‖M‖² = ‖M̂‖² + ‖M - M̂‖². Gradients of fewer than two dimensions,
    and those that the factors would not make smaller, are sent as they are.

    Args:
        rank: r.

    References:
        Vogels et al., "PowerSGD", NeurIPS 2019.
    """

    rank: int = 2
    name = "powersgd"
    contract = Contract(
        "all_reduce",
        bits=FACTOR_BITS,
        wants_feedback=True,
        has_memory=True,
        rounds=2,
        needs=("matrix",),
        host_reads=3,  # two, and one of the matrices at the ends of the range
    )
    batches = True
    shows_nonfinite = True
    resharded = first_state

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def init(self, grad: Tensor) -> Tensor | None:
        """Return Q, `[n2, r]`: normal, the same on every worker; None if it is sent dense."""
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return None
        return gaussian(matrix.shape[1], self.rank, grad.device, START).to(matrix.dtype)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange P, then Q; the memory counts the mean M̂ as sent."""
        ((step,),) = yield from fused([self.exchange_all([grad], [state], [rng])])
        return step

    def exchange_all(
        self,
        grads: Sequence[Tensor],
        states: Sequence[State],
        rngs: Sequence[Rng | None],
        terms: Sequence[Terms] = (),
    ) -> Exchanges[list[Step]]:
        """Exchange P of all matrices, then Q of all."""
        return (yield from in_batches(self, grads, states, terms))

    def exchange_batch(self, batch: Batch) -> Exchange[list[Step]]:
        """Exchange matrices of one dtype."""
        last = Factors.stacked(batch.states)
        bases = last.mapped([_normalised(block) for block in last.blocks])
        matrices, units, start = products(batch, bases, LIFT)
        for each, unit in zip(start.each, units, strict=True):
            _shrink(each, unit)
        mean = start.of((yield AllReduce(start.flat, "mean")))
        rooms = [_room(block) for block in mean.blocks]
        p = mean.mapped([orthonormal(block) for block in mean.blocks])
        narrow = p.mapped([block / room for block, room in zip(p.blocks, rooms, strict=True)])
        own = Factors.empty([matrix.shape[1] for matrix in matrices], self.rank, start.flat)
        for matrix, unit, basis, out in zip(matrices, units, narrow.each, own.each, strict=True):
            multiply(matrix.T, basis, out)
            out.copy_(from_unit(out, unit))
        q = own.of((yield AllReduce(own.flat, "mean")))
        wide = p.mapped([block * room for block, room in zip(p.blocks, rooms, strict=True)])
        sent = payloads(wide, q)
        return [
            # a step with NaN must not end all those after it
            mean_step(each, grad, each.right if each.is_finite else state)
            for each, grad, state in zip(sent, batch.grads, batch.states, strict=True)
        ]


def _normalised(block: Tensor) -> Tensor:
    """Factors with `LIFT` as their largest magnitudes, `[factors, n2, r]`."""
    peak = block.abs().amax((1, 2), keepdim=True)
    return block / torch.where(peak == 0, 1, peak) * LIFT


def _shrink(start: Tensor, unit: float) -> None:
    """Multiply by the unit, or by less of it where that would leave the range.

    Only the span of the columns counts.
    """
    if unit == 1:
        return
    wide = start.double()
    most = torch.finfo(start.dtype).max / wide.abs().amax().clamp(min=1.0)
    factor = torch.exp2(torch.frexp(most).exponent.double() - 1).clamp(max=unit)
    start.copy_(wide * factor)


def _room(mean: Tensor) -> Tensor:
    """Return by what all workers divide P so that MᵀP stays in range, `[factors, 1, 1]`.

    It is 1, or a power of two above √n1 where the mean is near the end of the range.
    """
    room = 2.0 ** (mean.shape[1].bit_length() // 2 + 2)
    return torch.where(mean.abs().amax((1, 2), keepdim=True) > NEAR_THE_END, room, 1.0)
