"""The parameters in a bucket of DistributedDataParallel, and a digest of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradstats.exchange.parameter_names import Key, Names
from gradstats.kernels.moving import divide
from gradstats.ratios import DenseRule

Piece = tuple[slice, Tensor]
CHUNK = 1 << 20  # words of a digest at a time
MULTIPLIER = 0x2545F4914F6CDD1D  # of xorshift64*


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter of a bucket.

    Attributes:
        key: Name or number of the parameter.
        grad: A view into the bucket, in the shape and memory order of the parameter; of a complex
            one its real and imaginary parts are a last dimension of 2.
        large: Whether it is compressed: `DenseRule` does not send it dense.
    """

    key: Key
    grad: Tensor
    large: bool


@dataclass(frozen=True, eq=False)
class Unit:
    """One or more parameters that are exchanged as one vector.

    Attributes:
        members: The parameters.
        dense: Whether they are sent as they are.
        whole: Their gradients, as one vector or in the shape of the only one: a part of the
            bucket, or memory of its own that `read` fills.
        pieces: Parts of the vector, and where they lie in the bucket.
        own: Whether `whole` has memory of its own.
    """

    members: Sequence[Member]
    dense: bool
    whole: Tensor
    pieces: Sequence[Piece]
    own: bool

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Keys of the parameters."""
        return tuple(member.key for member in self.members)

    @property
    def grads(self) -> list[Tensor]:
        """Gradients of the parameters."""
        return [member.grad for member in self.members]

    def read(self, scale: float = 1.0) -> list[Tensor]:
        """Fill `whole` with gradients divided by the loss scale: whether they are finite."""
        flat = self.whole.reshape(-1)
        pairs = [(flat[part].view(view.shape), view) for part, view in self.pieces if self.own]
        return [divide(out, view, scale) for out, view in pairs]

    def write(self, update: Tensor) -> None:
        """Put an update, shaped as `whole`, into the bucket."""
        for part, view in self.pieces:
            view.copy_(update.reshape(-1)[part].view(view.shape))


def members_of(
    buffer: Tensor, parameters: Sequence[Tensor], names: Names, rule: DenseRule
) -> list[Member]:
    """The parameters of a bucket, from the last of the model.

    Args:
        buffer: The bucket: the gradients, one after the other.
        parameters: Parameters of the bucket, in the order of the buffer.
        names: Names of the parameters.
        rule: Which parameters are sent dense.

    Raises:
        ValueError: the parameters do not add up to the buffer.
    """
    names.see(parameters)
    views = list(_views(buffer, parameters))
    pairs = sorted(zip(parameters, views, strict=True), key=lambda pair: names.place(pair[0]))
    return [Member(names.key(p), view, not rule.is_dense(p.shape)) for p, view in pairs]


def units_of(members: Sequence[Member], *, together: bool, scaled: bool = False) -> list[Unit]:
    """Units of large members, together or one each, then of small ones.

    Args:
        members: Of a bucket.
        together: Whether large members are one unit.
        scaled: Whether gradients are to be divided by a loss scale, outside the bucket.
    """
    large = [member for member in members if member.large]
    groups = [large] if large and together else [[member] for member in large]
    units = [_unit(group, False, together, scaled) for group in groups]
    return units + [_unit([member], True, False, scaled) for member in members if not member.large]


def _unit(group: Sequence[Member], dense: bool, together: bool, scaled: bool) -> Unit:
    pieces = pieces_of([member.grad for member in group])
    if not scaled and (not together or len(pieces) == 1):
        whole = pieces[0][1] if together else group[0].grad
        return Unit(group, dense, whole, pieces, False)
    first = group[0].grad
    shape = (sum(member.grad.numel() for member in group),) if together else first.shape
    return Unit(group, dense, first.new_empty(shape), pieces, True)


def pieces_of(grads: Sequence[Tensor]) -> list[Piece]:
    """Parts of the vector of several gradients, those that are neighbours in a bucket as one."""
    pieces: list[Piece] = []
    start = 0
    for grad in grads:
        end = start + grad.numel()
        view = grad.view(-1) if grad.is_contiguous() else grad
        before = pieces[-1][1] if pieces else view
        if pieces and before.dim() == view.dim() == 1 and _follows(view, before):
            part, before = pieces.pop()
            view = before.as_strided((len(before) + len(view),), (1,))
            pieces.append((slice(part.start, end), view))
        else:
            pieces.append((slice(start, end), view))
        start = end
    return pieces


def _follows(view: Tensor, before: Tensor) -> bool:
    return view.storage_offset() == before.storage_offset() + len(before)


def _views(buffer: Tensor, parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """The gradients as DistributedDataParallel lays them out: in the memory order of each.

    A bucket's own `gradients()` are of the right shape in the wrong order where a parameter is not
    row-major, and half as long as a complex one.
    """
    place = 0
    for parameter in parameters:
        real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter
        flat = buffer[place : place + real.numel()]
        place += real.numel()
        if place > buffer.numel():
            break
        offset = flat.storage_offset()
        dense = _is_dense(real)
        yield (
            flat.as_strided(real.shape, real.stride(), offset) if dense else flat.view(real.shape)
        )
    if place != buffer.numel():
        shapes = ", ".join(f"{p.dtype} of {list(p.shape)}" for p in parameters)
        rule = f"parameters of a bucket must add up to its {buffer.numel()} elements"
        raise ValueError(f"{rule}, got {place} of {shapes}")


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie side by side in some order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def digest_of(buffer: Tensor) -> int:
    r"""A 63-bit digest of a buffer: :math:`\sum_i m_i b_i` of its words b, see `_multipliers`."""
    words = buffer.detach().reshape(-1).view(_INTEGERS[buffer.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for place in range(0, len(words), CHUNK):
        part = words[place : place + CHUNK].to(torch.int64)
        total += part.mul_(_multipliers(place, len(part), part.device)).sum()
    return int(total) & (1 << 63) - 1


def _multipliers(start: int, count: int, device: torch.device) -> Tensor:
    """Odd numbers without a pattern, so that a single change is always seen.

    In multiples of 1, 3, 5, … a bucket of 2^20 elements that are doubled would be the same.
    """
    numbers = torch.arange(start, start + count, device=device).mul_(MULTIPLIER)
    return numbers.bitwise_xor_(numbers >> 32).bitwise_or_(1)


# of 64-bit words the first bits would be lost
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
