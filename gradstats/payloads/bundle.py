"""Payloads of the parts of one vector, sent together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gradstats.payloads.base import Payload, written
from gradstats.payloads.wire import Reader, Section, varint


@dataclass(frozen=True, eq=False, repr=False)
class Bundle(Payload):
    """The payloads of consecutive parts of one vector, sent together.

    Attributes:
        parts: in order.
    """

    parts: tuple[Payload, ...]
    kind = 4

    @property
    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.numel for part in self.parts)

    @property
    def count(self) -> int:
        """Elements sent in all parts."""
        return sum(part.count for part in self.parts)

    @property
    def is_known_finite(self) -> bool:
        """See `Payload.is_known_finite`."""
        return all(part.is_known_finite for part in self.parts)

    @property
    def inner_nbytes(self) -> int:
        """See `Payload.inner_nbytes`."""
        head = len(varint(self.kind)) + len(varint(len(self.parts)))
        return head + sum(part.inner_nbytes for part in self.parts)

    def sections(self) -> Iterator[Section]:
        """Number of parts, then the parts."""
        yield varint(len(self.parts))
        for part in self.parts:
            yield from written(part)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        payloads: list[Payload] = []
        left = reader.max_numel
        for _ in range(reader.number(reader.rest(), "number of parts")):
            payloads.append(reader.payload(left))
            left -= payloads[-1].numel
        return cls(tuple(payloads))

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        for part, view in self._split(out):
            part.add_to(view, weight)

    def write_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.write_to`."""
        for part, view in self._split(out):
            part.write_to(view, weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        for part, view in self._split(residual):
            part.remove_from(view)

    def clear(self, momentum: Tensor) -> None:
        """See `Payload.clear`."""
        for part, view in self._split(momentum):
            part.clear(view)

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        decoded = [part.decode() for part in self.parts]
        return torch.cat(decoded) if decoded else torch.zeros(0)

    def _split(self, vector: Tensor) -> Iterator[tuple[Payload, Tensor]]:
        views = torch.split(vector, [part.numel for part in self.parts])
        return zip(self.parts, views, strict=True)
