"""What is sent: self-describing payloads whose `nbytes` is the length of their bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats import kernels
from gradstats.compressors import index_codes
from gradstats.compressors.rng import Stream
from gradstats.compressors.wire import (
    ENVELOPE,
    PayloadError,
    Reader,
    Section,
    blob,
    code_of,
    seal,
    size,
    varint,
)


class Payload(ABC):
    """A message that stands for a gradient of `numel` elements, `count` of which travel.

    Attributes:
        kind: what tells its class apart in bytes.
        summable: its values lie at the same places on all workers: an all-reduce may add them.
    """

    kind: ClassVar[int]
    numel: int

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of elements that are sent."""

    @abstractmethod
    def sections(self) -> Iterator[Section]:
        """What it is in bytes, without its kind."""

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader) -> Self:
        """The payload whose sections come next."""

    @abstractmethod
    def decode(self) -> Tensor:
        """The gradient as the receiver sees it, `[numel]`."""

    @property
    def summable(self) -> bool:
        """Whether an all-reduce may add its values: they have the same places on all workers."""
        return False

    @property
    def nbytes(self) -> int:
        """Length of `to_bytes()`."""
        return ENVELOPE.size + self.inner_nbytes

    @property
    def inner_nbytes(self) -> int:
        """Bytes that it takes inside another payload."""
        return sum(map(size, written(self)))

    def to_bytes(self) -> bytes:
        """Bytes that `from_bytes` reads without knowing anything else."""
        return seal(written(self))

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the decoded gradient to `out`, `[numel]`; time goes with count."""
        out.add_(self.decode(), alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """Subtract the decoded gradient from `residual`, `[numel]`; NaN and inf leave 0."""
        residual.copy_(_left(residual, self.decode()))

    def clear(self, momentum: Tensor) -> None:
        """Set `momentum`, `[numel]`, to 0 at the elements that are sent."""
        momentum.zero_()


def written(payload: Payload) -> Iterator[Section]:
    """A payload's kind and sections."""
    yield varint(payload.kind)
    yield from payload.sections()


@dataclass(frozen=True, eq=False)
class Dense(Payload):
    """Every element, in order, in the dtype in which it travels.

    Attributes:
        values: `[numel]`.
    """

    values: Tensor
    kind = 0

    @property
    def numel(self) -> int:  # type: ignore[override]
        """Number of elements."""
        return self.values.numel()

    @property
    def count(self) -> int:
        """All of them."""
        return self.numel

    @property
    def summable(self) -> bool:
        """See `Payload.summable`."""
        return True

    def with_values(self, values: Tensor) -> Dense:
        """What an all-reduce leaves."""
        return Dense(values)

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        return self.values.clone()

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        out.add_(self.values, alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        residual.copy_(_left(residual, self.values))

    def sections(self) -> Iterator[Section]:
        """Dtype, number, values."""
        yield code_of(self.values.dtype)
        yield varint(self.numel)
        yield self.values

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        dtype, numel = reader.float_dtype(), reader.numel()
        return cls(reader.tensor(numel, dtype))


@dataclass(frozen=True, eq=False)
class Constant(Payload):
    """One value for every element.

    Attributes:
        value: `[1]`.
        numel: number of elements.
    """

    value: Tensor
    numel: int
    kind = 1

    @property
    def count(self) -> int:
        """All of them."""
        return self.numel

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        return self.value.repeat(self.numel)

    def sections(self) -> Iterator[Section]:
        """Dtype, number, value."""
        yield code_of(self.value.dtype)
        yield varint(self.numel)
        yield self.value

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        dtype, numel = reader.float_dtype(), reader.numel()
        return cls(reader.tensor(1, dtype), numel)


class Scattered(Payload):
    """Some of the elements; what is said of their values is a payload of its own.

    Attributes:
        kept: payload of the `count` values.
        indices: places of the elements, int64 `[count]`, rising.
    """

    kept: Payload
    indices: Tensor

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
        indices = self.indices
        residual[indices] = _left(residual[indices], self.values)

    def clear(self, momentum: Tensor) -> None:
        """See `Payload.clear`."""
        momentum[self.indices] = 0


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def _chosen(self) -> str:
        return self.index_code or index_codes.cheapest(self._places, self.numel)

    @property
    def _places(self) -> NDArray[np.int64]:
        return self.indices.cpu().numpy()

    @property
    def inner_nbytes(self) -> int:
        """See `Payload.inner_nbytes`."""
        length = index_codes.encoded_nbytes(self._places, self.numel, self._chosen)
        head = sum(map(size, (varint(self.kind), *self._head(), varint(length))))
        return head + length + self.kept.inner_nbytes

    def _head(self) -> Iterator[bytes]:
        yield varint(self.numel)
        yield varint(index_codes.CODES.index(self._chosen))
        yield varint(self.count)

    def sections(self) -> Iterator[Section]:
        """Number, index code, count, indices, the payload of the values."""
        yield from self._head()
        yield from blob(index_codes.encode_indices(self._places, self.numel, self._chosen))
        yield from written(self.kept)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """See `Payload.read`."""
        numel = reader.numel()
        code = index_codes.CODES[reader.number(len(index_codes.CODES) - 1, "index code")]
        count = reader.number(numel, "count")
        try:
            places = index_codes.decode_indices(reader.blob(), count, numel, code)
        except ValueError as error:
            raise PayloadError(f"cannot decode payload: {error}") from error
        return cls(_read_kept(reader, count), numel, torch.from_numpy(places), code)


@dataclass(frozen=True, eq=False)
class Masked(Scattered):
    """Elements at places that all workers draw from the same key: no index travels.

    Attributes:
        kept: payload of the values.
        numel: number of elements of the gradient.
        stream: the shared stream whose `subset(count, numel)` the places are.
        drawn: those places, where they were drawn already; they do not travel.
    """

    kept: Payload
    numel: int
    stream: Stream
    drawn: Tensor | None = field(default=None, repr=False)
    kind = 3

    @cached_property
    def indices(self) -> Tensor:  # type: ignore[override]
        """Int64 `[count]`."""
        if self.drawn is not None:
            return self.drawn
        device = self.kept.values.device if isinstance(self.kept, Dense) else "cpu"
        return self.stream.subset(self.count, self.numel, device)

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


@dataclass(frozen=True, eq=False)
class Bundle(Payload):
    """The payloads of consecutive parts of one vector, sent together.

    Attributes:
        parts: in order.
    """

    parts: tuple[Payload, ...]
    kind = 4

    @property
    def numel(self) -> int:  # type: ignore[override]
        """Elements of all parts."""
        return sum(part.numel for part in self.parts)

    @property
    def count(self) -> int:
        """Elements sent in all parts."""
        return sum(part.count for part in self.parts)

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
        found: list[Payload] = []
        left = reader.max_numel
        for _ in range(reader.number(reader.rest(), "number of parts")):
            found.append(reader.payload(left))
            left -= found[-1].numel
        return cls(tuple(found))

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        for part, view in self._split(out):
            part.add_to(view, weight)

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


def sparse(flat: Tensor, indices: Tensor) -> Sparse:
    """The payload of the elements of `flat` at `indices`, which need not rise."""
    places = indices.sort().values
    return Sparse(Dense(flat[places]), flat.numel(), places)


def above(flat: Tensor, threshold: float) -> Sparse:
    """The payload of the elements of `flat` with |x| > threshold, and of every NaN."""
    indices, values = kernels.compact(flat, threshold)
    return Sparse(Dense(values), flat.numel(), indices)


def _read_kept(reader: Reader, count: int) -> Payload:
    kept: Payload = reader.payload(count)
    if kept.numel != count:
        raise PayloadError(f"cannot decode payload: {kept.numel} values for {count} places")
    return kept


def _left(waiting: Tensor, sent: Tensor) -> Tensor:
    # a NaN was delivered like any other value: left in a residual, it would never go away
    return torch.where(sent.isfinite(), waiting - sent, 0).to(waiting.dtype)
