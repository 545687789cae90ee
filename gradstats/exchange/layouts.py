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
from gradstats.compressors.steps import Written
from gradstats.exchange.averaging import Averaging
from gradstats.exchange.buckets import Member, Piece, Unit, members_of, units_of
from gradstats.exchange.messaging import digest
from gradstats.exchange.parameter_names import Names
from gradstats.kernels.moving import are_finite, clear_at, divide
from gradstats.ratios import DenseRule


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
    _stale: dict[int, list[Written]] = field(default_factory=dict)
    _writes: int = -1  # to the result, as torch counts them

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

    @cached_property
    def is_read_in_place(self) -> bool:
        """Whether all units are parts of a float32 or float64 bucket: none is copied or cast."""
        return self.buffer.dtype.itemsize > 2 and not any(unit.own for unit in self.units)

    def read(self, scale: float) -> Tensor:
        """Fill the units with gradients divided by the loss scale: whether all are finite."""
        flags = [flag for unit in self.units for flag in unit.read(scale)]
        views = [unit.whole for unit in self.units if not unit.own]
        return all_of(flags, views, self.buffer)

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
        stale, self._stale = self._stale_places(), {}
        for unit, step, targets in zip(self.units, steps, self._targets, strict=True):
            if scale == 1 and self._adds(unit, step, targets, stale):
                continue
            (_, first), direct = targets[0], len(targets) == 1 and targets[0][1].dim() == 1
            flat = first if direct else _flat(unit)
            step.write_to(flat)
            if scale != 1:
                flat.mul_(scale)
            if direct:
                views += [] if step.is_known_finite and scale == 1 else [flat]
            else:
                flags += [divide(view, flat[part].view(view.shape)) for part, view in targets]
        self._writes = self.result._version
        return all_of(flags, views, self.result)

    def _stale_places(self) -> dict[int, list[Written]]:
        """Where the last step has written, by unit, if nobody has written to the result since."""
        return self._stale if self.result._version == self._writes else {}

    def _adds(
        self, unit: Unit, step: Step, targets: list[Piece], stale: dict[int, list[Written]]
    ) -> bool:
        """Write a sparse update, and 0 to all other places; False if that is not possible."""
        mean = step.mean
        flat = all(view.dim() == 1 for _, view in targets)
        if mean is None or not flat or not mean.is_sparse:
            return False
        for view, places in stale.get(id(unit), ()):
            clear_at(view, places)
        for _, view in targets if id(unit) not in stale else ():
            view.zero_()
        written = mean.add_to_pieces(targets)
        if written is None:
            return False
        self._stale[id(unit)] = written
        return True

    @cached_property
    def _targets(self) -> list[list[Piece]]:
        """For each unit the places of its pieces in the result."""
        origin = self.buffer.storage_offset()
        return [
            [
                (
                    part,
                    self.result.as_strided(
                        view.shape, view.stride(), view.storage_offset() - origin
                    ),
                )
                for part, view in unit.pieces
            ]
            for unit in self.units
        ]


def _flat(unit: Unit) -> Tensor:
    """Memory for a unit's update: that of its gradients, which were read, if it is its own."""
    return unit.whole.view(-1) if unit.own else unit.whole.new_empty(unit.whole.numel())


def all_of(flags: Sequence[Tensor], views: Sequence[Tensor], whole: Tensor) -> Tensor:
    """Whether all flags are true and all views finite: a bool, `[]`.

    Args:
        flags: Bools, `[]`.
        views: Parts of the whole.
        whole: Is read at once if the views are all of it.
    """
    if sum(view.numel() for view in views) == whole.numel():
        return are_finite([whole])
    known = torch.ones((), dtype=torch.bool, device=whole.device)
    return torch.stack([known, *flags, *([are_finite(views)] if views else [])]).all()


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


def layout_of(
    bucket: Any, names: Names, dense_rule: DenseRule, *, together: bool, scaled: bool
) -> Layout:
    """Look at a bucket.

    Args:
        bucket: That DistributedDataParallel passes.
        names: Of the parameters.
        dense_rule: Which of them are sent dense.
        together: Whether the others are exchanged together.
        scaled: Whether gradients are divided by a loss scale.

    Raises:
        ValueError: Its gradients are sparse.
    """
    if bucket.buffer().is_sparse:
        fact = "got sparse ones, make the embedding with sparse=False"
        raise ValueError(f"gradients must be dense to be compressed, {fact}")
    members = members_of(bucket.buffer(), bucket.parameters(), names, dense_rule)
    units = units_of(members, together=together, scaled=scaled)
    facts = [(member.key, *member.grad.shape, member.grad.dtype) for member in members]
    return Layout(bucket.parameters(), bucket.buffer(), members, units, digest(str(facts)))
