"""Go on with a trained model at low rank: the model and its optimizer, or neither."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradstats.lowrank.factorizing import Factorization, Settings, planned
from gradstats.lowrank.optimizers import rebuilt


def warm_start(
    model: nn.Module, optimizer: Optimizer, rank_ratio: float = 0.25, **how: Any
) -> tuple[Factorization, Optimizer]:
    """Go on with a trained model at low rank: Pufferfish's switch after a warm-up of full rank.

    Factors are the balanced truncated SVD of the weights, so that their products are the best
    approximations of that rank; everything else of the model stays, running statistics of
    BatchNorm included. The optimizer is a new one of the same class and settings, group by group,
    made before the model is touched: where this raises, nothing has changed. Its momentum is
    dropped, as published, since it belongs to matrices that are gone; the norms of `extra_norm`
    are in the group of their layer's bias, else of its weight.

    Args:
        model: The trained model, changed in place.
        optimizer: The optimizer of its parameters. Its schedulers and hooks must be made anew, on
            the optimizer returned. A fresh schedule starts at the learning rate of the moment. One
            that was under way goes on after `load_state_dict` of the old one's state, once the
            settings of the old groups are put back, which the constructors of some schedules
            change.
        rank_ratio: As in `factorize`.
        **how: Other keywords of `factorize`.

    Returns:
        The factorization and the new optimizer.

    Raises:
        ValueError: As `factorize` does, or the optimizer is another model's, or its class cannot
            be made again from its settings.

    References:
        Wang et al., "Pufferfish", MLSys 2021.
    """
    plan = planned(model, Settings(rank_ratio, warm=True, **how))
    fresh = rebuilt(optimizer, plan.replaced, plan.names)
    return plan.carried_out(model), fresh
