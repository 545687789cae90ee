from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors.batches import Batch, Factors, in_batches, mean_step, payloads, products
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
from gradstats.kernels.ranges import from_unit
from gradstats.rng import Rng

START = (0x41435053, 0x47440000)  # key of the first Q


@dataclass(frozen=True)
class ACPSGD(Joint):
    r"""PowerSGD's two rounds in turn: one step projects on Q, the next one on P.

    .. math:: \text{even steps:}\quad Q = \operatorname{orth}(Q), \; P = \frac1n \sum_w M_w Q;
              \qquad \text{odd steps:}\quad P = \operatorname{orth}(P), \;
              Q = \frac1n \sum_w M_w^T P; \qquad \hat M = P Q^T

    One all-reduce per step, of r n1 or of r n2 elements: the other factor is known from the step
    before. A payload on its own has to hold both.

    Args:
        rank: r.

    References:
        Zhang et al., "Evaluation and optimization of gradient compression for distributed deep
        learning" (ACP-SGD), ICDCS 2023.
    """

    rank: int = 2
    name = "acp-sgd"
    contract = Contract(
        "all_reduce",
        bits=FACTOR_BITS,
        wants_feedback=True,
        has_memory=True,
        needs=("matrix",),
        host_reads=3,  # two, and one of the matrices at the ends of the range
    )
    batches = True
    shows_nonfinite = True
    resharded = first_state

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def init(self, grad: Tensor) -> State:
        """Return whether the step is even, and the known factor; None if it is sent dense."""
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return None
        return True, gaussian(matrix.shape[1], self.rank, grad.device, START).to(matrix.dtype)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange one factor; the memory counts the mean M̂ as sent."""
        ((step,),) = yield from fused([self.exchange_all([grad], [state], [rng])])
        return step

    def exchange_all(
        self,
        grads: Sequence[Tensor],
        states: Sequence[State],
        rngs: Sequence[Rng | None],
        terms: Sequence[Terms] = (),
    ) -> Exchanges[list[Step]]:
        """Exchange one factor of all matrices."""
        return (yield from in_batches(self, grads, states, terms))

    def exchange_batch(self, batch: Batch) -> Exchange[list[Step]]:
        """Exchange matrices of one dtype, which may be at even and odd steps."""
        evens = [even for even, _ in batch.states]
        known = Factors.stacked([factor for _, factor in batch.states])
        bases = known.mapped([orthonormal(block) for block in known.blocks])
        _, units, own = products(batch.turned([not even for even in evens]), bases)
        for product, unit in zip(own.each, units, strict=True):
            product.copy_(from_unit(product, unit))
        mean = own.of((yield AllReduce(own.flat, "mean")))
        sent = [
            each if even else each.transposed()
            for each, even in zip(payloads(mean, bases), evens, strict=True)
        ]
        each = zip(sent, batch.grads, mean.each, batch.states, strict=True)
        return [
            # a step with NaN must not end all those after it
            mean_step(payload, grad, (not state[0], factor) if payload.is_finite else state)
            for payload, grad, factor, state in each
        ]
