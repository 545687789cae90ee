"""Payloads: self-describing messages whose `nbytes` is the length of their bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from gradstats.kernels.moving import subtract_sent
from gradstats.payloads.wire import (
    ENVELOPE,
    Reader,
    Section,
    code_of,
    seal,
    size,
    varint,
)


class Payload(ABC):
    """A message that stands for a gradient of `numel` elements, `count` of which travel.

    Attributes:
        kind: the code of its class in the bytes.
        summable: whether its values belong to the same indices on all workers, so that an
            all-reduce may add them.
    """

    kind: ClassVar[int]

    if TYPE_CHECKING:  # at run time a property would be the default of a dataclass's field

        @property
        @abstractmethod
        def numel(self) -> int:
            """Number of elements of the gradient; a field of some payloads."""

    def __repr__(self) -> str:
        sent = f"{self.count:,} of {self.numel:,} elements"
        return f"<{type(self).__name__}: {sent}, {self.nbytes:,} bytes>"

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
        """Return the gradient that the receiver gets, `[numel]`.

        Raises:
            PayloadError: bad entropy-coded elements, too many for `from_bytes` to look at.
        """

    @property
    def summable(self) -> bool:
        """Whether an all-reduce may add its values: they have the same indices on all workers."""
        return False

    @property
    def is_known_finite(self) -> bool:
        """Whether the host knows that no element decodes to more than half of float32's range."""
        return False

    @property
    def nbytes(self) -> int:
        """Length of `to_bytes()`."""
        return ENVELOPE.size + self.inner_nbytes

    @property
    def inner_nbytes(self) -> int:
        """Bytes that it takes inside another payload."""
        return sum(map(size, written(self)))

    @property
    def device(self) -> torch.device:
        """Where `decode` puts the gradient: where the payload's tensors are, else the CPU."""
        return _device(self) or torch.device("cpu")

    def to(self, device: torch.device) -> Self:
        """The payload with its tensors on a device; itself where they are there."""
        moved: Self = _moved(self, device)
        return moved

    def to_bytes(self) -> bytes:
        """Return bytes that `from_bytes` reads without other information."""
        return seal(written(self))

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the decoded gradient to `out`, `[numel]`; time goes with count."""
        out.add_(self.decode(), alpha=weight)

    def write_to(self, out: Tensor, weight: float = 1.0) -> None:
        """Put `weight` times the decoded gradient into `out`, `[numel]`, of a wide dtype."""
        self.add_to(out.zero_(), weight)

    def remove_from(self, residual: Tensor) -> None:
        """Subtract the decoded gradient from `residual`, `[numel]`; NaN and inf leave 0."""
        subtract_sent(residual, self.decode())

    def clear(self, momentum: Tensor) -> None:  # noqa: B027 - most send every element
        """Set `momentum`, `[numel]`, to 0 where elements were selected among others to be sent."""


def _device(part: Any) -> torch.device | None:
    """The device of the first tensor of a payload or of a part of one, or what it names."""
    if isinstance(part, Tensor):
        return part.device
    if isinstance(part, torch.device):
        return part
    if isinstance(part, tuple):
        return next(filter(None, map(_device, part)), None)
    if not is_dataclass(part) or isinstance(part, type):
        return None
    return _device(tuple(getattr(part, field.name) for field in fields(part)))


def _moved(part: Any, device: torch.device) -> Any:
    """A payload, or a part of one, with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, torch.device):
        return part if part == device else device
    if isinstance(part, tuple):
        return tuple(_moved(each, device) for each in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    moved = {name: _moved(value, device) for name, value in values.items()}
    return part if all(moved[name] is values[name] for name in values) else replace(part, **moved)


def written(payload: Payload) -> Iterator[Section]:
    """A payload's kind and sections."""
    yield varint(payload.kind)
    yield from payload.sections()


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Payload):
    """Every element, in order, in the dtype in which it travels.

    Attributes:
        values: `[numel]`.
    """

    values: Tensor
    kind = 0

    @property
    def numel(self) -> int:
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
        subtract_sent(residual, self.values)

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


@dataclass(frozen=True, eq=False, repr=False)
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
