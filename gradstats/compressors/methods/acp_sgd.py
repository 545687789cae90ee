from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Joint
from gradstats.compressors.contracts import Contract
from gradstats.compressors.matrices import (
    FACTOR_BITS,
    as_matrix,
    check_rank,
    gaussian,
    orthonormal,
)
from gradstats.compressors.rounds import AllReduce, Collective, State, Step
from gradstats.compressors.states import first_state
from gradstats.kernels.ranges import from_unit, in_range, saturated
from gradstats.payloads.low_rank import LowRank
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
        host_reads=2,
    )
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
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return (yield from self.dense(grad, state))
        even, known = state
        basis = orthonormal(known)
        matrix, unit = in_range(matrix if even else matrix.T)
        mean = yield AllReduce(from_unit(matrix @ basis, unit), "mean")
        p, q = (mean, basis) if even else (basis, mean)
        sent = LowRank(p, q)
        update = saturated(sent.decode(), grad.dtype).view(grad.shape)
        # a step with NaN must not end all those after it
        after = (not even, mean) if math.isfinite(sent.peaks[0 if even else 1]) else state
        return Step(update, sent, after)
