"""What lies in a bucket, and the memory that the hook keeps for it from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Step
from gradstats.exchange.averaging import Averaging
from gradstats.exchange.buckets import Member, Piece, Unit
from gradstats.exchange.messaging import digest
from gradstats.kernels.moving import are_finite, divide


@dataclass(eq=False)
class Layout:
    """A bucket as the hook sees it; its views stay valid while the bucket stays where it is.

    Attributes:
        parameters: Parameters of the bucket, in its order.
        buffer: The bucket.
        members: The same parameters, in the order in which they are compressed.
        units: Parameters that are exchanged together.
        digest: Of keys, shapes and dtypes.
        agreed: Whether all workers have had the same digest in this place before.
    """

    parameters: Sequence[Tensor]
    buffer: Tensor
    members: Sequence[Member]
    units: Sequence[Unit]
    digest: int
    agreed: bool = False
    _averagings: dict[torch.dtype, Averaging] = field(default_factory=dict)

    def averaging(self, dtype: torch.dtype, workers: int) -> Averaging:
        """Its mean in a dtype, by so many workers."""
        if dtype not in self._averagings:
            self._averagings[dtype] = Averaging(self.buffer, self.members, dtype, workers)
        return self._averagings[dtype]

    def fits(self, parameters: Sequence[Tensor], buffer: Tensor) -> bool:
        """Whether these are its parameters, in the same memory."""
        return (
            self.buffer.data_ptr() == buffer.data_ptr()
            and self.buffer.numel() == buffer.numel()
            and len(self.parameters) == len(parameters)
            and all(map(is_, self.parameters, parameters))
        )

    def read(self, scale: float) -> Tensor:
        """Fill the units with gradients divided by the loss scale: whether all are finite."""
        flags = [flag for unit in self.units for flag in unit.read(scale)]
        if not flags:
            return are_finite([self.buffer])
        views = [unit.whole for unit in self.units if not unit.own]
        return torch.stack([*flags, *([are_finite(views)] if views else [])]).all()

    @cached_property
    def result(self) -> Tensor:
        """Memory for the mean update, laid out as the bucket."""
        return torch.empty_like(self.buffer)

    def write(self, steps: Sequence[Step], scale: float) -> Tensor:
        """Put the updates of the units, times the loss scale, into the result.

        Returns:
            Whether all are finite.
        """
        flags: list[Tensor] = []
        views: list[Tensor] = []
        for unit, step, targets in zip(self.units, steps, self._targets, strict=True):
            (_, first), direct = targets[0], len(targets) == 1 and targets[0][1].dim() == 1
            numel = unit.whole.numel()
            flat = first if direct else _flat(unit) if unit.own else first.new_empty(numel)
            step.write_to(flat)
            if scale != 1:
                flat.mul_(scale)
            if direct:
                views += [] if step.is_known_finite and scale == 1 else [flat]
            else:
                flags += [divide(there, flat[part].view(there.shape)) for part, there in targets]
        if len(views) == len(self.units):
            return are_finite([self.result])
        if views:
            flags.append(are_finite(views))
        known = torch.ones((), dtype=torch.bool, device=self.buffer.device)
        return torch.stack([known, *flags]).all()

    @cached_property
    def _targets(self) -> list[list[Piece]]:
        """For each unit the places of its pieces in the result."""
        origin = self.buffer.storage_offset()
        return [
            [
                (
                    part,
                    self.result.as_strided(
                        there.shape, there.stride(), there.storage_offset() - origin
                    ),
                )
                for part, there in unit.pieces
            ]
            for unit in self.units
        ]


def _flat(unit: Unit) -> Tensor:
    return unit.whole.view(-1)


class Layouts:
    """The layouts of the buckets of a pass, by their place in it."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def known(self, place: int, bucket: Any) -> Layout | None:
        """The layout of a bucket that is as it was in the last pass."""
        layout = self._layouts.get(place)
        if layout and layout.fits(bucket.parameters(), bucket.buffer()):
            return layout
        return None

    def add(self, place: int, layout: Layout) -> Layout:
        """Keep the layout of a bucket that is new, or another one than before."""
        self._layouts[place] = layout
        return layout

    def end(self, buckets: int) -> None:
        """End a pass of so many buckets."""
        self._layouts = {k: layout for k, layout in self._layouts.items() if k < buckets}


def layout_of(members: Sequence[Member], units: Sequence[Unit], bucket: Any) -> Layout:
    """The layout of a bucket with these parameters."""
    facts = [(member.key, *member.grad.shape, member.grad.dtype) for member in members]
    return Layout(bucket.parameters(), bucket.buffer(), members, units, digest(str(facts)))
