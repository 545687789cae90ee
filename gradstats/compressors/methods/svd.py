from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.matrices import FACTOR_BITS, LAPACK, as_matrix, check_rank, factors
from gradstats.compressors.rounds import State
from gradstats.kernels.ranges import in_unit, largest_magnitude, unit_of
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.low_rank import LowRank
from gradstats.rng import Rng


@dataclass(frozen=True)
class SVD(Compressor):
    """The best approximation of rank r of each worker's matrix, by its singular values.

    ‖M - M̂‖² = σ²_{r+1} + σ²_{r+2} + …, the least that any rank-r method can lose on one worker
    (Eckart and Young), so δ >= r/min(n1, n2). A matrix that this
    cannot make smaller is sent uncompressed.

    Args:
        rank: r.

    References:
        Eckart and Young, Psychometrika 1936.
    """

    rank: int = 2
    name = "svd"
    contract = Contract(
        "all_gather",
        delta=Bound("r/min(n1, n2)", lambda payload: _share(payload)),
        bits=FACTOR_BITS,
        wants_feedback=True,
        needs=("matrix",),
        host_reads=3,
    )

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """The leading r singular triplets, the values in the left factor."""
        matrix = as_matrix(grad, self.rank)
        if matrix is None:
            return Dense(self.flattened(grad).clone()), state
        peak = largest_magnitude(matrix)
        if not math.isfinite(peak):
            return LowRank(
                matrix.new_full((len(matrix), 1), torch.nan), matrix[:1].T.clone()
            ), state
        unit = unit_of(peak, LAPACK)
        matrix = in_unit(matrix, unit)
        u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
        left, right = u[:, : self.rank] * sigma[: self.rank], vt[: self.rank].T
        return factors(left.contiguous(), right.contiguous(), unit), state


def _share(payload: LowRank | Dense) -> float:
    if isinstance(payload, Dense):
        return 1.0
    return payload.rank / min(len(payload.left), len(payload.right)) - 1e-6  # float32
