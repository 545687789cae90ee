from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
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

START = (0x50575247, 0x53474400)  # key of the first Q
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
        host_reads=2,
    )
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
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return (yield from self.dense(grad, state))
        matrix, unit = in_range(matrix)
        peak = state.abs().amax()
        start = matrix @ (state / torch.where(peak == 0, 1, peak))
        mean = yield AllReduce(_shrunk(start, unit), "mean")
        p, room = orthonormal(mean), _room(mean)
        q = yield AllReduce(from_unit(matrix.T @ (p / room), unit), "mean")
        sent = LowRank(p * room, q)
        update = saturated(sent.decode(), grad.dtype).view(grad.shape)
        # a step with NaN must not end all those after it
        return Step(update, sent, torch.where(q.isfinite().all(), q, state))


def _shrunk(start: Tensor, unit: float) -> Tensor:
    """start · unit, or less of it where that would leave the range: only its span counts."""
    if unit == 1:
        return start
    wide = start.double()
    most = torch.finfo(start.dtype).max / wide.abs().amax().clamp(min=1.0)
    factor = torch.exp2(torch.frexp(most).exponent.double() - 1).clamp(max=unit)
    return (wide * factor).to(start.dtype)


def _room(mean: Tensor) -> Tensor:
    """By what all workers divide P so that MᵀP stays in range: 1, or a power of two above √n1."""
    room = 2.0 ** (len(mean).bit_length() // 2 + 2)
    return torch.where(mean.abs().amax() > NEAR_THE_END, room, 1.0)
