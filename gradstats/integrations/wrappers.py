"""The wrapper that a trainer puts around a model: whether gradients can be compressed in it."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")
ALONE = "one process trains the model, so that nothing is exchanged and nothing is compressed"


def ddp_around(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel module that a model is, or that lies in `torch.compile`.

    Raises:
        TypeError: Several parts of the model are wrapped one by one.
    """
    parts = [one for one in model.modules() if isinstance(one, DistributedDataParallel)]
    if len(parts) > 1:
        rule = "cannot compress the gradients of a model with several DistributedDataParallel"
        remedy = "register gradstats.ddp_hooks.compress_hook with each of them"
        raise TypeError(f"{rule}: it has {len(parts)}; {remedy}")
    return parts[0] if parts else None


def explain_without_ddp(model: nn.Module) -> str:
    """The reason why nothing is compressed where DistributedDataParallel is missing.

    Raises:
        TypeError: Several processes or devices train the model, and exchange in another way.
    """
    workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    other = _other_wrapper(model)
    if not other and workers == 1:
        return ALONE
    fact = f"it is trained by {other or 'something else'}, not by DistributedDataParallel"
    if other == "DataParallel":
        remedy = "one process copies the model to its devices; start one per device by torchrun"
    else:
        remedy = (
            "train with DistributedDataParallel (strategy 'ddp'), whose buckets are compressed"
        )
    name = f"the gradients of {type(model).__name__} in {workers} process{'es' * (workers > 1)}"
    raise TypeError(f"cannot compress {name}: {fact}; {remedy}")


def _other_wrapper(model: nn.Module) -> str:
    """Name of what distributes the model, where that is not DistributedDataParallel."""
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            return "DataParallel"
        names = {base.__name__ for base in type(module).__mro__}
        for name in SHARDED:
            if name in names:
                return name
    sharded = any(hasattr(parameter, "placements") for parameter in model.parameters())
    return "a model of DTensor parameters" if sharded else ""
