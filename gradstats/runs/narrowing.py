"""Gradients in a narrower dtype: losses are counted, and large losses refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_ZEROED = 1e-3  # share of the non-zero elements of a parameter


@dataclass
class Lost:
    """The losses of one parameter in all rows.

    Attributes:
        name: of the parameter; "" for all together.
        elements: how many were finite and not zero.
        zeroed: how many of them became zero.
        infinite: how many of them became infinite.
        smallest: magnitude of what became zero.
        step: step of the first row in which one became zero.
    """

    name: str = ""
    elements: int = 0
    zeroed: int = 0
    infinite: int = 0
    smallest: float = math.inf
    step: int = 0

    @property
    def share(self) -> float:
        """The share of the finite non-zero elements that became zero."""
        return self.zeroed / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        percent = f"{100 * self.share:.3g}" if self.share >= 1e-5 else "less than 0.001"
        return f"{self.zeroed:,} of {_counted(self.elements, 'non-zero element')} ({percent} %)"

    def add(self, values: Tensor, narrow: Tensor, step: int) -> int:
        """Count the losses of a row; return how many elements became infinite."""
        finite = values.isfinite() & (values != 0)
        lost = values[(narrow == 0) & finite]
        infinite = int((narrow.isinf() & finite).sum())
        if len(lost):
            self.step = self.step if self.zeroed else step
            self.smallest = min(self.smallest, float(lost.abs().min()))
        self.elements += int(finite.sum())
        self.zeroed += len(lost)
        self.infinite += infinite
        return infinite


class Narrowing:
    """Converts elements to a dtype and counts those that become infinite or zero.

    One infinite element makes every norm and mean of its row infinite, so none is accepted without
    `allow_loss`. Elements that become zero are the smallest: in each parameter, up to a share
    `MOST_ZEROED` of the non-zero elements may become zero.

    Args:
        dtype: name of the dtype; "" leaves elements as they are.
        allow_loss: accept any number of infinite and of zeroed elements.
    """

    def __init__(self, dtype: str, *, allow_loss: bool = False) -> None:
        self.dtype = dtype
        self._allow_loss = allow_loss
        self._lost: dict[tuple[str, str], Lost] = {}

    def __call__(
        self, values: Tensor, name: str, step: int, note: str = "", quantity: str = "grad"
    ) -> Tensor:
        """Convert elements of one parameter at one step.

        Args:
            values: the elements.
            name: of the parameter.
            step: of the row.
            note: a remark on the elements for an error.
            quantity: "grad" or "weight", which are counted apart.

        Raises:
            ValueError: an element becomes infinite.
        """
        narrow = values.to(getattr(torch, self.dtype)) if self.dtype else values
        if narrow.dtype == values.dtype:
            return narrow
        lost = self._lost.setdefault((name, quantity), Lost(name))
        infinite = lost.add(values, narrow, step)
        if infinite and not self._allow_loss:
            largest = float(values[values.isfinite()].abs().max())
            what = f"{_counted(infinite, 'element')} of {name!r} at step {step} as {self.dtype}"
            fact = f"stored they are up to {largest:.3g}{note}"
            raise ValueError(f"cannot copy {what}: {fact}; {self._remedy(largest)}")
        return narrow

    def _remedy(self, magnitude: float) -> str:
        """A dtype that holds a magnitude which this one does not."""
        limits = torch.finfo(torch.bfloat16)
        fits = self.dtype == "float16" and limits.smallest_normal <= magnitude <= limits.max
        other = "bfloat16" if fits else "float64"
        return f"choose another dtype, such as {other}, or accept the loss with --allow-loss"

    def check(self) -> None:
        """Check, after the last row, that few elements of every parameter have become zero.

        Raises:
            ValueError: more than `MOST_ZEROED` of the non-zero elements of one have.
        """
        beyond = [each for each in self._lost.values() if each.share > MOST_ZEROED]
        if self._allow_loss or not beyond:
            return
        worst = max(beyond, key=lambda each: (each.share, each.zeroed))
        more = f", and of {_counted(len(beyond) - 1, 'other parameter')}" * (len(beyond) > 1)
        fact = f"more than {100 * MOST_ZEROED:g} % would become 0, first at step {worst.step}"
        smallest = min(each.smallest for each in beyond)
        raise ValueError(
            f"cannot copy {worst} of {worst.name!r}{more} as {self.dtype}: {fact}; "
            f"{self._remedy(smallest)}"
        )

    def lines(self) -> Iterator[str]:
        """What was lost, for people; nothing where nothing was."""
        each = self._lost.values()
        infinite = sum(one.infinite for one in each)
        total = Lost("", sum(one.elements for one in each), sum(one.zeroed for one in each))
        if infinite:
            are = "is" if infinite == 1 else "are"
            yield (
                f"{_counted(infinite, 'element')} {are} beyond {self.dtype} and became infinite"
            )
        if total.zeroed:
            tiny = torch.finfo(getattr(torch, self.dtype)).smallest_normal
            became = f"became 0, too small for {self.dtype} (normal from {tiny:.3g})"
            worst = max(each, key=lambda one: (one.share, one.zeroed))
            most = f"most of {worst.name!r}: {worst}, first at step {worst.step}"
            yield f"{total} {became}; {most}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
