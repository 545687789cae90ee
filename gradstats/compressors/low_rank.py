"""Low-rank payloads, and what the methods that send them share."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gradstats.compressors.base import AllReduce, Bound, Collective, State, Step
from gradstats.compressors.payloads import Dense, Payload
from gradstats.compressors.rng import Stream
from gradstats.compressors.wire import PayloadError, Reader, Section, code_of, varint
from gradstats.kernels.ranges import from_unit, in_range, unit_of

LAPACK = 30  # exponent of 2, up to which factorisations of LAPACK do not depend on the unit
HALF = 40  # exponent of 2, up to which products of two factors are far from the ends of float32
SMALLEST = 2.0**-33  # half of what the uniform numbers are apart


@dataclass(frozen=True, eq=False)
class LowRank(Payload):
    r"""A matrix as the product of two factors, :math:`\hat M = P Q^T`, row by row.

    Attributes:
        left: P, `[n1, r]`.
        right: Q, `[n2, r]`.
    """

    left: Tensor
    right: Tensor
    kind = 7

    @property
    def numel(self) -> int:  # type: ignore[override]
        """n1 n2."""
        return len(self.left) * len(self.right)

    @property
    def count(self) -> int:
        """Every element is spoken of."""
        return self.numel

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        (left, a), (right, b) = in_range(self.left, HALF), in_range(self.right, HALF)
        return from_unit((left @ right.T).reshape(-1), a * b)

    def sections(self) -> Iterator[Section]:
        """Dtype, n1, n2, r, P, Q."""
        yield code_of(self.left.dtype)
        for number in (len(self.left), len(self.right), self.rank):
            yield varint(number)
        yield self.left
        yield self.right

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        dtype = reader.float_dtype()
        n1, n2, rank = (reader.number(reader.max_numel, what) for what in ("n1", "n2", "rank"))
        if not (n1 and n2) or n1 * n2 > reader.max_numel or rank > min(n1, n2):
            raise PayloadError(f"cannot decode payload: a matrix of {n1} by {n2}, rank {rank}")
        left, right = (reader.tensor(n * rank, dtype).view(n, rank) for n in (n1, n2))
        return cls(left, right)


FACTOR_BITS = Bound("32 r (n1 + n2)", lambda payload: _factor_bits(payload))


def _factor_bits(payload: LowRank | Dense) -> float:
    if isinstance(payload, Dense):
        return 8.0 * payload.values.nbytes
    return 8.0 * (payload.left.nbytes + payload.right.nbytes)


def check_rank(rank: int) -> None:
    """Raise ValueError unless it is the rank of a matrix."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number from 1, got {rank!r}")


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


def orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, filled up where they are dependent."""
    basis: Tensor = torch.linalg.qr(in_range(matrix, LAPACK)[0]).Q
    return basis


def dense(grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
    """The step of a gradient that is sent as it is."""
    sent = Dense(grad.detach().reshape(-1).clone())
    mean = yield AllReduce(sent.values, "mean")
    return Step(mean.view(grad.shape), sent, state)
