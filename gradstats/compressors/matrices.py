"""Matrices, factors and ranks of the low-rank methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Bound
from gradstats.kernels.ranges import from_unit, in_own_unit, unit_of
from gradstats.payloads.base import Dense
from gradstats.payloads.low_rank import LowRank
from gradstats.rng import Stream

LAPACK = 30  # exponent of 2, up to which factorisations of LAPACK do not depend on the unit
SMALLEST = 2.0**-33  # half of what the uniform numbers are apart
FACTOR_BITS = Bound("32 r (n1 + n2)", lambda payload: _factor_bits(payload))


def _factor_bits(payload: LowRank | Dense) -> float:
    if isinstance(payload, Dense):
        return 8.0 * payload.values.nbytes
    return 8.0 * (payload.left.nbytes + payload.right.nbytes)


def check_rank(rank: int) -> None:
    """Raise ValueError unless it is the rank of a matrix."""
    check_whole("rank", rank, 1)


def as_matrix(grad: Tensor, rank: int) -> Tensor | None:
    """The gradient as a matrix of the first dimension by the others, or None: send it dense.

    It goes dense with fewer than two dimensions, and where two factors would be no smaller. In 16
    bits the matrix is float32.
    """
    if grad.dim() < 2 or not grad.numel():
        return None
    matrix = grad.detach().reshape(len(grad), -1)
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def gaussian(rows: int, columns: int, device: torch.device, key: tuple[int, int]) -> Tensor:
    """Standard normal float32 `[rows, columns]`, the same wherever it is drawn."""
    uniform = Stream(key).uniform(rows * columns, device)
    drawn: Tensor = torch.special.ndtri(uniform + SMALLEST).float()
    return drawn.view(rows, columns)


def factors(left: Tensor, right: Tensor, unit: float) -> LowRank:
    """The payload of unit · P Qᵀ, with an extreme unit, a power of two, shared by the factors."""
    share = 1.0 if unit_of(unit) == 1 else 2.0 ** (math.frexp(unit)[1] // 2)
    return LowRank(from_unit(left, unit / share), from_unit(right, share))


def orthonormal(matrices: Tensor) -> Tensor:
    """An orthonormal basis of the columns, filled up where they are dependent, `[..., n, r]`."""
    basis: Tensor = torch.linalg.qr(in_own_unit(matrices, LAPACK, (-2, -1))).Q
    return basis
