"""Go on with a trained model at low rank: the model and its optimizer, or neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from gradstats.lowrank.factorizing import Factorization, Settings, planned
from gradstats.lowrank.optimizers import rebuilt


def warm_start(
    model: nn.Module,
    optimizer: Optimizer,
    rank_ratio: float = 0.25,
    *,
    keep: str | Iterable[str] = (),
    full_rank_layers: int = 0,
    ranks: Mapping[str, int] | None = None,
    extra_norm: bool = False,
) -> tuple[Factorization, Optimizer]:
    """Replace the weights of a trained model by low-rank factors, and renew its optimizer.

    This is Pufferfish's switch after a warm-up at full rank: the training goes on afterwards. Each
    weight is replaced by two factors, the balanced truncated SVD of the weight, whose product is
    the best approximation of that rank. The rest of the model stays, running statistics of
    BatchNorm included. The new optimizer has the class, the groups and the settings of the old
    one. Its momentum is dropped, as published, since it belongs to matrices that no longer exist.
    The norms of `extra_norm` join the group of their layer's bias, else of its weight. If an error
    is raised, neither the model nor the optimizer has changed.

    Schedulers and hooks of the old optimizer must be made anew, on the new one. A new schedule
    starts at the present learning rate. To continue an old schedule:

        _, new_optimizer = warm_start(model, old_optimizer)
        schedule = StepLR(new_optimizer, 30)  # with the arguments of the old schedule
        schedule.load_state_dict(old_schedule.state_dict())
        pairs = zip(new_optimizer.param_groups, old_optimizer.param_groups, strict=True)
        for group, old in pairs:  # some schedules change the settings when they are made
            group.update({k: v for k, v in old.items() if k not in ("params", "param_names")})

    Args:
        model: Trained model, changed in place.
        optimizer: Optimizer of the model's parameters, which is left as it is.
        rank_ratio: Rank divided by the shorter side of each matrix, in (0, 1].
        keep: As in `factorize`, and so are the following.
        full_rank_layers: Number of first layers that stay.
        ranks: Ranks by layer.
        extra_norm: Add a norm between the factors of convolutions.

    Returns:
        The factorization, which lists the layers that were replaced, and the new optimizer.

    Raises:
        TypeError: `optimizer` is no `torch.optim.Optimizer`.
        ValueError: A case in which `factorize` raises it, an optimizer that holds none of the
            replaced weights, or one that cannot be made again from its settings.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.
    """
    plan = planned(
        model, Settings(rank_ratio, keep, full_rank_layers, ranks, extra_norm, warm=True)
    )
    fresh = rebuilt(optimizer, plan.replaced, plan.names)
    return plan.carried_out(model), fresh
