"""When to switch to low rank, and to which: after a fixed warm-up, or when ranks stand still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.lowrank.factorizing import Factorization
from gradstats.lowrank.staying import FACTORED
from gradstats.lowrank.warming import warm_start

EARLIEST = 15  # epochs
SPAN = 15  # of the moving average
LATEST = 11  # slopes that are averaged
STILL = 0.1  # the mean slope, in ranks an epoch, below which a rank stands still


def stable_rank(weight: Tensor) -> float:
    r"""‖W‖²_F/‖W‖²₂, between 1 and min(m, n); 0 for a zero matrix.

    Args:
        weight: of two dimensions or more; the first by the others.

    Example:
        >>> stable_rank(torch.eye(4))
        4.0
    """
    matrix = weight.detach().flatten(1)
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    largest = float(torch.linalg.matrix_norm(wide, 2))
    return float(wide.square().sum()) / largest**2 if largest else 0.0


class VanillaWarmUp:
    """Full rank for some epochs, then low rank: a helper for a plain training loop.

    Args:
        model: of full rank, not wrapped.
        optimizer: of its parameters.
        epochs: of full rank.
        **how: as `warm_start` has it.

    Attributes:
        found: the factorization, None before the switch.

    Example:
        >>> model = nn.Linear(32, 32)
        >>> warm_up = VanillaWarmUp(model, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1)
        >>> for epoch in range(3):
        ...     model, optimizer = warm_up(epoch)
        >>> model
        LowRankLinear(
          rank=8
          (first): Linear(in_features=32, out_features=8, bias=False)
          (second): Linear(in_features=8, out_features=32, bias=True)
        )
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, epochs: int, **how: Any) -> None:
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"epochs must be a whole number, got {epochs!r}")
        self.found: Factorization | None = None
        self._model, self._optimizer, self._epochs, self._how = model, optimizer, epochs, how

    def __call__(self, epoch: int) -> tuple[nn.Module, Optimizer]:
        """The model and the optimizer to use in an epoch, counted from 0."""
        if self.found is None and epoch >= self._epochs:
            self.found, self._optimizer = warm_start(self._model, self._optimizer, **self._how)
            self._model = self.found.model
        return self._model, self._optimizer


class RankTracker:
    r"""Cuttlefish: the rank of each layer, and when to switch, from stable ranks of the weights.

    Scaled by what a fresh layer has, :math:`\hat r_t = \xi \operatorname{sr}(W_t)` with
    :math:`\xi = \min(m, n)/\operatorname{sr}(W_0)`. A layer stands still when the slope of the
    moving average of r̂ over the epochs, averaged over the last eleven, is at most 0.1; once all
    do, not before epoch 15, the ranks are ⌈r̂⌉, at most min(m, n).

    Args:
        model: at initialization.
        still: largest mean slope of a layer that stands still, in ranks an epoch.
        earliest: epochs before which nothing is decided.

    Attributes:
        history: by layer, r̂ after each epoch.

    References:
        Wang et al., "Cuttlefish: Low-rank model training without all the tuning", MLSys 2023.
    """

    def __init__(
        self, model: nn.Module, *, still: float = STILL, earliest: int = EARLIEST
    ) -> None:
        if not still > 0 or not isinstance(earliest, int) or earliest < 2:
            raise ValueError(
                f"still must be positive and earliest at least 2, got {still!r} and {earliest!r}"
            )
        self._model, self._still, self._earliest = model, still, earliest
        self._scale = {name: min(w.shape) / stable_rank(w) for name, w in _matrices(model)}
        self.history: dict[str, list[float]] = {name: [] for name in self._scale}

    def update(self) -> bool:
        """Look at the weights after an epoch; whether it is time to switch."""
        for name, weight in _matrices(self._model):
            self.history[name].append(self._scale[name] * stable_rank(weight))
        return all(self._stands_still(found) for found in self.history.values())

    @property
    def ranks(self) -> dict[str, int]:
        """By layer ⌈r̂⌉ of the last epoch, for `factorize(ranks=...)`."""
        full = {name: min(weight.shape) for name, weight in _matrices(self._model)}
        return {
            name: max(1, min(math.ceil(found[-1]), full[name]))
            for name, found in self.history.items()
            if found
        }

    def _stands_still(self, found: list[float]) -> bool:
        if len(found) < self._earliest:
            return False
        slopes = np.gradient(_averaged(found))
        return bool(np.abs(slopes[-LATEST:]).mean() <= self._still)


def _averaged(found: list[float]) -> list[float]:
    """The exponential moving average of a span of 15."""
    share, kept = 2 / (SPAN + 1), [found[0]]
    for value in found[1:]:
        kept.append(share * value + (1 - share) * kept[-1])
    return kept


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By layer that can have low rank, its weight as a matrix; of several the first."""
    for name, layer in model.named_modules():
        if isinstance(layer, FACTORED):
            weight = next(p for p in layer.parameters() if p.dim() > 1)
            yield name, weight.detach().flatten(1)
