"""A matrix as the product of two factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from gradstats.kernels.ranges import from_unit, in_unit, largest_magnitudes, unit_of
from gradstats.payloads.base import Payload
from gradstats.payloads.wire import PayloadError, Reader, Section, code_of, varint

HALF = 40  # exponent of 2, up to which products of two factors are far from the ends of float32


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Payload):
    r"""A matrix as the product of two factors, :math:`\hat M = P Q^T`, row by row.

    Attributes:
        left: P, `[n1, r]`.
        right: Q, `[n2, r]`.
    """

    left: Tensor
    right: Tensor
    kind = 7

    @classmethod
    def measured(cls, left: Tensor, right: Tensor, peaks: tuple[float, float]) -> Self:
        """Return a payload whose largest magnitudes the host has already."""
        payload = cls(left, right)
        vars(payload)["peaks"] = peaks
        return payload

    def transposed(self) -> Self:
        """The payload Q Pᵀ."""
        left, right = self.peaks
        return self.measured(self.right, self.left, (right, left))

    @property
    def numel(self) -> int:
        """n1 n2."""
        return len(self.left) * len(self.right)

    @property
    def count(self) -> int:
        """Every element is covered."""
        return self.numel

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]

    @cached_property
    def peaks(self) -> tuple[float, float]:
        """The largest magnitudes of P and Q, NaN if there is one; read from the device once."""
        left, right = largest_magnitudes(self.left, self.right)
        return left, right

    @property
    def is_finite(self) -> bool:
        """Whether both factors are."""
        return all(map(math.isfinite, self.peaks))

    @property
    def is_known_finite(self) -> bool:
        """See `Payload.is_known_finite`."""
        return self._is_plain

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        a, b = (unit_of(peak, HALF) for peak in self.peaks)
        product = in_unit(self.left, a) @ in_unit(self.right, b).T
        return from_unit(product.reshape(-1), a * b)

    def write_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.write_to`."""
        if self._is_plain and out.dtype == self.left.dtype:
            torch.mm(self.left, self.right.T, out=out.view(len(self.left), len(self.right)))
        else:
            out.copy_(self.decode())
        if weight != 1:
            out.mul_(weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        if not self._is_plain or residual.dtype != self.left.dtype:
            super().remove_from(residual)
            return
        matrix = residual.view(len(self.left), len(self.right))
        matrix.addmm_(self.left, self.right.T, alpha=-1)

    @property
    def _is_plain(self) -> bool:
        """Whether the product is finite, far from the ends of the range, and needs no unit."""
        if self.left.dtype == torch.float16:  # whose range is less
            return False
        return all(peak <= 2.0**HALF and unit_of(peak, HALF) == 1 for peak in self.peaks)

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
