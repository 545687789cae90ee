"""When to switch to low rank, and to which: after a fixed warm-up, or when ranks stand still."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.lowrank.factorizing import Factorization, described
from gradstats.lowrank.kinds import LOW_RANK
from gradstats.lowrank.rules import Matrix, full_rank
from gradstats.lowrank.staying import Places, layers, why_kept
from gradstats.lowrank.warming import warm_start

EARLIEST = 15  # epochs
SPAN = 15  # of the moving average
LATEST = 11  # slopes that are averaged
STILL = 0.1  # the mean slope, in ranks per epoch, below which a rank stands still
ROUNDING = 1e-5  # relative, of a stable rank in float32


def stable_rank(weight: Tensor) -> float:
    r"""‖W‖²_F/‖W‖²₂, between 1 and min(m, n); 0 for a zero matrix, NaN where one is in it.

    Args:
        weight: of two dimensions or more; the first by the others.

    Raises:
        ValueError: fewer dimensions.

    Example:
        >>> stable_rank(torch.eye(4))
        4.0
    """
    if weight.dim() < 2:
        raise ValueError(f"weight must be a matrix or more, got shape {tuple(weight.shape)}")
    return float(_stable_ranks(weight.detach().flatten(1)[None])[0])


def _stable_ranks(stack: Tensor) -> Tensor:
    """Stable ranks of matrices `[count, m, n]`, in units of each one's largest element."""
    wide = stack if stack.dtype == torch.float64 else stack.float()
    unit = wide.abs().amax((1, 2), keepdim=True)
    scaled = (wide / torch.where(unit > 0, unit, 1)).nan_to_num(0, 0, 0)
    largest = torch.linalg.matrix_norm(scaled, 2).double().clamp_min(1)  # at least the unit
    ranks = scaled.double().square().sum((1, 2)) / largest**2
    return torch.where(unit.flatten().isfinite(), ranks, torch.nan)


class VanillaWarmUp:
    """Full rank for some epochs, then low rank: a helper for a plain training loop.

    Args:
        model: of full rank, not wrapped.
        optimizer: of its parameters.
        epochs: of full rank.
        rank_ratio: as in `warm_start`, and so are the following.
        keep: globs of names of layers that stay.
        full_rank_layers: number of first layers that stay.
        ranks: ranks by layer.
        extra_norm: add a norm between the factors of convolutions.

    Attributes:
        found: The factorization; None before the switch.

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

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epochs: int,
        rank_ratio: float = 0.25,
        *,
        keep: str | Iterable[str] = (),
        full_rank_layers: int = 0,
        ranks: Mapping[str, int] | None = None,
        extra_norm: bool = False,
    ) -> None:
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"epochs must be a whole number, got {epochs!r}")
        self.found: Factorization | None = None
        self._model, self._optimizer, self._epochs = model, optimizer, epochs
        self._switch = partial(
            warm_start,
            rank_ratio=rank_ratio,
            keep=keep,
            full_rank_layers=full_rank_layers,
            ranks=ranks,
            extra_norm=extra_norm,
        )

    def __call__(self, epoch: int) -> tuple[nn.Module, Optimizer]:
        """The model and the optimizer to use in an epoch, counted from 0."""
        if self.found is None and epoch >= self._epochs:
            self.found, self._optimizer = self._switch(self._model, self._optimizer)
            self._model = self.found.model
        return self._model, self._optimizer


class RankTracker:
    r"""Cuttlefish: the rank of each layer, and when to switch, from stable ranks of the weights.

    Scaled by what a fresh layer has, :math:`\hat r_t = \xi \operatorname{sr}(W_t)` with
    :math:`\xi = \min(m, n)/\operatorname{sr}(W_0)`, and ξ = 1 for a matrix of zeros at first. Of
    the matrices of one layer (groups, gates, projections) the largest r̂ counts. A layer stands
    still when the slope of the moving average of r̂ over the epochs, averaged over the last eleven,
    is at most 0.1; once all do, not before epoch 15, the ranks are ⌈r̂⌉, at most min(m, n). Layers
    that `factorize` would not replace are not looked at.

    Args:
        model: at initialization.
        still: largest mean slope of a layer that stands still, in ranks per epoch.
        earliest: epochs before which nothing is decided.

    Attributes:
        history: by layer, r̂ after each epoch; NaN where its weights are not finite, and then it
            does not stand still.

    Raises:
        ValueError: a setting out of range, weights that are not finite, or a model that has no
            layer to replace or has layers of low rank already.

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
        places = Places(model)
        self._layers = [name for name, layer in layers(model) if not why_kept(layer, places)]
        if not self._layers:
            raise ValueError(f"model must have layers to replace, got {type(model).__name__}")
        first = {name: self._ranks_of(name) for name in self._layers}
        broken = [name for name, ranks in first.items() if ranks.isnan().any()]
        if broken:
            raise ValueError(f"weights must be finite, got NaN or inf in {', '.join(broken)}")
        self._scale = {
            name: torch.where(ranks > 0, self._sides(name) / ranks.clamp_min(1e-300), 1.0)
            for name, ranks in first.items()
        }
        self.history: dict[str, list[float]] = {name: [] for name in self._layers}

    def update(self) -> bool:
        """Look at the weights after an epoch; whether it is time to switch.

        Raises:
            ValueError: the model has been factorised since.
        """
        for name in self._layers:
            self.history[name].append(float((self._scale[name] * self._ranks_of(name)).max()))
        return all(self._stands_still(ranks) for ranks in self.history.values())

    @property
    def ranks(self) -> dict[str, int]:
        """By layer ⌈r̂⌉ of the last epoch, for `factorize(ranks=...)`.

        Raises:
            ValueError: the weights of a layer were not finite then.
        """
        last = {name: ranks[-1] for name, ranks in self.history.items() if ranks}
        broken = [name for name, rank in last.items() if math.isnan(rank)]
        if broken:
            raise ValueError(f"cannot tell the rank of {', '.join(broken)}: NaN or inf in it")
        return {
            name: max(1, min(math.ceil(rank * (1 - ROUNDING)), full_rank(self._matrices(name))))
            for name, rank in last.items()
        }

    def _matrices(self, name: str) -> tuple[Matrix, ...]:
        layer = self._model.get_submodule(name)
        if isinstance(layer, LOW_RANK):
            raise ValueError(f"model must be of full rank, got low rank in {name}")
        return described(layer)[1]

    def _sides(self, name: str) -> Tensor:
        """min(m, n) of each matrix of a layer."""
        return torch.tensor([float(min(matrix.sides)) for matrix in self._matrices(name)])

    def _ranks_of(self, name: str) -> Tensor:
        """The stable rank of each matrix of a layer."""
        blocks = {matrix.parameter: matrix.blocks for matrix in self._matrices(name)}
        layer = self._model.get_submodule(name)
        weights = [(layer.get_parameter(each).detach(), n) for each, n in blocks.items()]
        return torch.cat([_stable_ranks(torch.stack(w.flatten(1).chunk(n))) for w, n in weights])

    def _stands_still(self, ranks: list[float]) -> bool:
        if len(ranks) < self._earliest:
            return False
        slopes = np.gradient(_averaged(ranks))
        return bool(np.abs(slopes[-LATEST:]).mean() <= self._still)


def _averaged(values: list[float]) -> list[float]:
    """The exponential moving average of a span of 15."""
    share, kept = 2 / (SPAN + 1), [values[0]]
    for value in values[1:]:
        kept.append(share * value + (1 - share) * kept[-1])
    return kept
