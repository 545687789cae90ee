"""Gradients in a narrower dtype: what is lost is counted, and refused where it is much."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

MOST_ZEROED = 1e-3  # share of the non-zero elements


class Narrowing:
    """Converts elements to a dtype and counts those that become infinite or zero.

    One infinite element makes every norm and mean of its row infinite, so that none is accepted
    unless it is asked for. Elements that become zero are the smallest: up to a share of
    `MOST_ZEROED` of the non-zero elements may.

    Args:
        dtype: name of the dtype; "" leaves elements as they are.
        allow_loss: accept any number of either.
    """

    def __init__(self, dtype: str, *, allow_loss: bool = False) -> None:
        self.dtype = dtype
        self.elements = 0  # non-zero and finite, before
        self.infinite = 0
        self.zeroed = 0
        self._allow_loss = allow_loss
        self._first = ""
        self._smallest = math.inf  # of what became zero

    def __call__(self, values: Tensor, name: str, step: int, note: str = "") -> Tensor:
        """Convert elements of one parameter at one step.

        Args:
            values: the elements.
            name: of the parameter.
            step: of the row.
            note: what else an error should say of the elements.

        Raises:
            ValueError: an element becomes infinite.
        """
        found = values.to(getattr(torch, self.dtype)) if self.dtype else values
        if found.dtype == values.dtype:
            return found
        infinite = int((found.isinf() & values.isfinite()).sum())
        zeroed = int(((found == 0) & (values != 0)).sum())
        self.elements += int((values.isfinite() & (values != 0)).sum())
        self.infinite += infinite
        self.zeroed += zeroed
        if zeroed:
            lost = values[(found == 0) & (values != 0)]
            self._smallest = min(self._smallest, float(lost.abs().min()))
            self._first = self._first or f"{zeroed} of {name!r} at step {step} first"
        if infinite and not self._allow_loss:
            largest = float(values[values.isfinite()].abs().max())
            what = f"{infinite} elements of {name!r} at step {step} as {self.dtype}"
            fact = f"stored they are up to {largest:.3g}{note}"
            raise ValueError(f"cannot copy {what}: {fact}; {self._remedy(largest)}")
        return found

    def _remedy(self, magnitude: float) -> str:
        """A dtype that holds a magnitude which this one does not."""
        limits = torch.finfo(torch.bfloat16)
        fits = self.dtype == "float16" and limits.smallest_normal <= magnitude <= limits.max
        other = "bfloat16" if fits else "float64"
        return f"choose another dtype, such as {other}, or accept the loss with --allow-loss"

    def check(self) -> None:
        """Check, after the last row, that few elements have become zero.

        Raises:
            ValueError: more than `MOST_ZEROED` of the non-zero elements have.
        """
        if self._allow_loss or self.zeroed <= MOST_ZEROED * self.elements:
            return
        share = f"{self.zeroed:,} of {self.elements:,} non-zero elements ({self._share:.2g} %)"
        fact = f"more than {100 * MOST_ZEROED:g} % would become 0, {self._first}"
        raise ValueError(
            f"cannot copy {share} as {self.dtype}: {fact}; {self._remedy(self._smallest)}"
        )

    @property
    def _share(self) -> float:
        return 100 * self.zeroed / self.elements

    def lines(self) -> Iterator[str]:
        """What was lost, for people; nothing where nothing was."""
        if self.infinite:
            yield f"{self.infinite:,} elements are beyond {self.dtype} and became infinite"
        if self.zeroed:
            tiny = torch.finfo(getattr(torch, self.dtype)).smallest_normal
            total = f"{self.elements:,} non-zero elements ({self._share:.2g} %)"
            became = f"are too small for {self.dtype} (normal from {tiny:.3g}) and became 0"
            yield f"{self.zeroed:,} of {total} {became}, {self._first}"
