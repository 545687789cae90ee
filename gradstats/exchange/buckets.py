"""The parameters in a bucket of DistributedDataParallel, and a digest of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.exchange.parameter_names import Key, Names
from gradstats.ratios import DenseRule

CHUNK = 1 << 20  # words of a digest at a time


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
        whole: Their gradients, as one vector or in the shape of the only one.
    """

    members: Sequence[Member]
    dense: bool
    whole: Tensor

    @property
    def keys(self) -> tuple[Key, ...]:
        """Keys of the parameters."""
        return tuple(member.key for member in self.members)

    @property
    def grads(self) -> list[Tensor]:
        """Gradients of the parameters."""
        return [member.grad for member in self.members]

    def write(self, update: Tensor) -> None:
        """Put an update, shaped as `whole`, into the bucket."""
        parts = torch.split(update.reshape(-1), [grad.numel() for grad in self.grads])
        for member, part in zip(self.members, parts, strict=True):
            member.grad.copy_(part.view(member.grad.shape))


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


def units_of(members: Sequence[Member], *, together: bool, scale: float) -> list[Unit]:
    """Units of large members, together or one each, then of small ones; divided by the scale."""
    large = [member for member in members if member.large]
    groups = [large] if large and together else [[member] for member in large]
    units = [Unit(group, False, _whole(group, together)) for group in groups]
    units += [Unit([m], True, m.grad) for m in members if not m.large]
    if scale == 1:
        return units
    return [Unit(unit.members, unit.dense, unit.whole / scale) for unit in units]


def _whole(group: Sequence[Member], together: bool) -> Tensor:
    if not together:
        return group[0].grad
    return torch.cat([member.grad.reshape(-1) for member in group])


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


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all elements are finite, a bool on their device, `[]`; each is read once."""
    tensors = [tensor for tensor in tensors if tensor.numel()]
    if not tensors:
        return torch.tensor(True)
    norms = torch._foreach_norm(tensors, math.inf)  # as torch's own clipping does
    return torch.stack([norm.to(norms[0].dtype) for norm in norms]).isfinite().all()


def digest_of(buffer: Tensor) -> int:
    r"""A 63-bit digest of a buffer: :math:`\sum_i (2i + 1) b_i` of its words b."""
    words = buffer.detach().reshape(-1).view(_INTEGERS[buffer.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for place in range(0, len(words), CHUNK):
        part = words[place : place + CHUNK].to(torch.int64)
        odd = torch.arange(place, place + len(part), device=part.device).mul_(2).add_(1)
        total += (part * odd).sum()
    return int(total) & (1 << 63) - 1


# of 64-bit words the first bits would be lost
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
