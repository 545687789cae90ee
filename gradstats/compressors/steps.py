"""What the step of a worker returns; its update is decoded where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.kernels.forms import on_host
from gradstats.kernels.moving import add_at
from gradstats.kernels.ranges import largest_magnitude, saturated
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.sparse import Scattered

Written = tuple[Tensor, Tensor]  # a vector, and indices in it


@dataclass(frozen=True, eq=False)
class PayloadMean:
    """The mean of payloads that are not decoded yet.

    Attributes:
        payloads: of all workers, or one that an all-reduce has averaged.
        shape: of the gradient.
        dtype: of the gradient; the mean of 16-bit ones is taken in float32.
        device: of the gradient.
    """

    payloads: tuple[Payload, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def decoded(self) -> Tensor:
        """Return the mean, shaped as the gradient."""
        averaged = self._averaged()
        if averaged is None:
            wide = torch.float32 if self.dtype.itemsize == 2 else self.dtype
            averaged = torch.empty(self.shape.numel(), dtype=wide, device=self.device)
            self._add_up(averaged)
        return saturated(averaged, self.dtype).view(self.shape)

    def write_to(self, out: Tensor) -> None:
        """Put the mean into a vector of the gradient's dtype, `[numel]`."""
        if self._averaged() is not None or out.dtype.itemsize == 2:
            out.copy_(self.decoded().view(-1))
        else:
            self._add_up(out)

    @property
    def is_sparse(self) -> bool:
        """Whether it has few elements, whose places the host knows."""
        known = all(
            isinstance(each, Scattered) and on_host(each.indices) for each in self.payloads
        )
        return known and self.dtype.itemsize > 2

    def add_to_pieces(self, pieces: Sequence[tuple[slice, Tensor]]) -> list[Written] | None:
        """Add a sparse mean to parts of the vector that lie apart.

        Args:
            pieces: parts of the vector, in order, and where they are, `[end - start]`.

        Returns:
            Where it was added; None if the mean may be infinite or NaN.
        """
        weight, most = 1 / len(self.payloads), torch.finfo(self.dtype).max / 2
        written: list[Written] = []
        for payload in self.payloads:
            assert isinstance(payload, Scattered)
            values, first = payload.values, 0
            if not largest_magnitude(values) <= most:
                return None
            ends = torch.tensor([part.stop for part, _ in pieces])
            lasts = torch.searchsorted(payload.indices, ends).tolist()
            for (part, view), last in zip(pieces, lasts, strict=True):
                places = payload.indices[first:last] - part.start
                add_at(view, places, values[first:last].to(view.dtype), weight)
                written.append((view, places))
                first = last
        return written

    @property
    def is_finite(self) -> bool:
        """Whether the host knows that the mean is finite."""
        return all(payload.is_known_finite for payload in self.payloads)

    def _averaged(self) -> Tensor | None:
        """The values of a vector that an all-reduce has averaged."""
        first = self.payloads[0]
        return first.values if isinstance(first, Dense) and len(self.payloads) == 1 else None

    def _add_up(self, out: Tensor) -> None:
        (first, *others), weight = self.payloads, 1 / len(self.payloads)
        first.write_to(out, weight)
        for payload in others:
            payload.add_to(out, weight)


class _Update:
    """The field of a step that is decoded where it is asked for, if it is a `PayloadMean`."""

    def __get__(self, step: Any, owner: type | None = None) -> Tensor:
        if step is None:
            raise AttributeError("update")  # the field has no default
        held = vars(step)["held"]
        if isinstance(held, PayloadMean):
            held = vars(step)["held"] = held.decoded()
        update: Tensor = held
        return update

    def __set__(self, step: Any, value: Tensor | PayloadMean) -> None:
        vars(step)["held"] = value


@dataclass(frozen=True, eq=False)
class Step:
    """Result of an exchange.

    Attributes:
        update: the mean over workers that the optimizer gets, shaped as the gradient; what is
            given as a `PayloadMean` is decoded where it is asked for.
        sent: what this worker's memory must count as delivered.
        state: for the next step.
    """

    update: Tensor
    sent: Payload
    state: Any

    def with_state(self, state: Any) -> Step:
        """Return the same step with another state; nothing is decoded."""
        return Step(vars(self)["held"], self.sent, state)

    @property
    def mean(self) -> PayloadMean | None:
        """The update, if it is a mean that is not decoded yet."""
        held = vars(self)["held"]
        return held if isinstance(held, PayloadMean) else None

    @property
    def is_known_finite(self) -> bool:
        """Whether the host knows that the update is finite, without reading it."""
        held = vars(self)["held"]
        return isinstance(held, PayloadMean) and held.is_finite

    def write_to(self, out: Tensor) -> None:
        """Put the update into a vector, `[numel]`."""
        held = vars(self)["held"]
        if isinstance(held, PayloadMean):
            held.write_to(out)
        else:
            out.copy_(held.reshape(-1))


Step.update = _Update()  # type: ignore[assignment] # once the fields are known


def averaged(mean: PayloadMean, sent: Payload, state: Any) -> Step:
    """Return a step whose update is decoded where it is asked for."""
    update: Any = mean
    return Step(update, sent, state)
