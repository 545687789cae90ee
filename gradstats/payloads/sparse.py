"""Payloads of some of the elements: their indices, and a payload of their values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from torch import Tensor

from gradstats import kernels
from gradstats.payloads import index_codes
from gradstats.payloads.base import Dense, Payload, written
from gradstats.payloads.wire import (
    PayloadError,
    Reader,
    Section,
    blob,
    size,
    varint,
)
from gradstats.rng import Stream


class Scattered(Payload):
    """Some of the elements; their values are a payload of their own.

    Attributes:
        kept: payload of the `count` values.
        indices: indices of the elements, int64 `[count]`, rising.
    """

    kept: Payload

    if TYPE_CHECKING:  # see `Payload`

        @property
        @abstractmethod
        def indices(self) -> Tensor:
            """Int64 `[count]`, rising; a field of some payloads."""

    @property
    def count(self) -> int:
        """Elements that are sent."""
        return self.kept.numel

    @property
    def values(self) -> Tensor:
        """The elements as the receiver sees them, `[count]`."""
        return self.kept.decode()

    def with_kept(self, kept: Payload) -> Self:
        """The same places with other values."""
        return replace(self, kept=kept)  # type: ignore[type-var]

    def with_values(self, values: Tensor) -> Self:
        """The same places with other values, as they are."""
        return self.with_kept(Dense(values))

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        values = self.values
        out = values.new_zeros(self.numel)
        out[self.indices] = values
        return out

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.index_add_(0, self.indices, self.values.to(out.dtype), alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        kernels.subtract_at(residual, self.indices, self.values)

    def clear(self, momentum: Tensor) -> None:
        """See `Payload.clear`; where all are sent none was selected."""
        if self.count < self.numel:
            momentum.index_fill_(0, self.indices, 0)


@dataclass(frozen=True, eq=False, repr=False)
class Sparse(Scattered):
    """Some elements with their indices.

    Attributes:
        kept: payload of the values.
        numel: number of elements of the gradient.
        indices: int64 `[count]`, rising, without repetition.
        index_code: how the indices are written, one of `index_codes.CODES`; None: the shortest.
    """

    kept: Payload
    numel: int
    indices: Tensor
    index_code: str | None = None
    kind = 2

    @classmethod
    def at(cls, flat: Tensor, indices: Tensor) -> Self:
        """Return the payload of a gradient's elements at some indices.

        Args:
            flat: the gradient, `[d]`.
            indices: int64, in any order, without repetition.

        Example:
            >>> import torch
            >>> Sparse.at(torch.tensor([3.0, 0.0, -5.0]), torch.tensor([2, 0])).values
            tensor([ 3., -5.])
        """
        rising = indices.sort().values
        return cls(Dense(flat[rising]), flat.numel(), rising)

    @classmethod
    def above(cls, flat: Tensor, threshold: float) -> Self:
        """Return the payload of the elements with |x| > threshold, and of every NaN.

        Args:
            flat: the gradient, `[d]`, contiguous.
            threshold: a magnitude.

        Example:
            >>> import torch
            >>> Sparse.above(torch.tensor([3.0, 0.0, -5.0]), 4.0).indices
            tensor([2])
        """
        indices, values = kernels.compact(flat, threshold)
        return cls(Dense(values), flat.numel(), indices)

    @cached_property
    def _written(self) -> tuple[str, int]:
        """The code of the indices and its bytes; the host waits for the device at most once."""
        if self.index_code is None:
            return index_codes.cheapest(self.indices, self.numel)
        length = index_codes.encoded_nbytes(self.indices, self.numel, self.index_code)
        return self.index_code, length

    @property
    def inner_nbytes(self) -> int:
        """See `Payload.inner_nbytes`."""
        _, length = self._written
        head = sum(map(size, (varint(self.kind), *self._head(), varint(length))))
        return head + length + self.kept.inner_nbytes

    def _head(self) -> Iterator[bytes]:
        code, _ = self._written
        yield varint(self.numel)
        yield varint(index_codes.CODES.index(code))
        yield varint(self.count)

    def sections(self) -> Iterator[Section]:
        """Number, index code, count, indices, the payload of the values."""
        yield from self._head()
        yield from blob(index_codes.encode_indices(self.indices, self.numel, *self._written))
        yield from written(self.kept)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        numel = reader.numel()
        code = index_codes.CODES[reader.number(len(index_codes.CODES) - 1, "index code")]
        count = reader.number(numel, "count")
        indices = reader.indices(count, numel, code)
        return cls(_read_kept(reader, count), numel, indices, code)


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Scattered):
    """Elements at indices that all workers draw from the same key: no index travels.

    Attributes:
        kept: payload of the values.
        numel: number of elements of the gradient.
        stream: the shared stream whose `subset(count, numel)` are the indices.
        drawn: those indices, if they were drawn already; they do not travel.
    """

    kept: Payload
    numel: int
    stream: Stream
    drawn: Tensor | None = field(default=None, repr=False)
    kind = 3

    @cached_property
    def indices(self) -> Tensor:
        """Int64 `[count]`."""
        if self.drawn is not None:
            return self.drawn
        return self.stream.subset(self.count, self.numel, self.kept.device)

    @property
    def summable(self) -> bool:
        """See `Payload.summable`."""
        return self.kept.summable

    def sections(self) -> Iterator[Section]:
        """Number, key, count, the payload of the values."""
        yield varint(self.numel)
        yield from (varint(word) for word in self.stream.key)
        yield varint(self.count)
        yield from written(self.kept)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        numel = reader.numel()
        stream = Stream(reader.key())
        count = reader.number(numel, "count")
        return cls(_read_kept(reader, count), numel, stream)


def _read_kept(reader: Reader, count: int) -> Payload:
    kept: Payload = reader.payload(count)
    if kept.numel != count:
        raise PayloadError(f"cannot decode payload: {kept.numel} values for {count} places")
    return kept
