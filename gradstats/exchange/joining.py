"""What happens before a training: settings are checked, compared over the workers, and tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from gradstats.compressors import Compressor, Rng
from gradstats.compressors import compressor as from_spec
from gradstats.compressors.wrappers.per_parameter import without_parts
from gradstats.exchange.collectives import Group
from gradstats.exchange.driving import drive, fused
from gradstats.exchange.messaging import CollectiveError, digest
from gradstats.exchange.parameter_names import Names
from gradstats.ratios import DenseRule

FSDP = (
    "compress_hook must be given a bucket of DistributedDataParallel, got {name}: FSDP reduces "
    "gradients to shards, where no worker has the whole that a compressor works on. Train with "
    "DistributedDataParallel; what can be compressed under FSDP are the shards, between the "
    "replicas of a hybrid-sharded model, by a hook of your own around gradstats.exchange.drive"
)
PYTHON_REDUCER = (
    "compress_hook must be given a bucket of DistributedDataParallel, got a gradient and its "
    "parameter, as the reducer in Python of a compiled model gives them: set "
    "torch._dynamo.config.optimize_ddp = True (or False) before the model is wrapped"
)
TRIAL = (64, 48)  # shape of the matrix that is exchanged before the training


def checked(compressor: str | Compressor) -> tuple[Compressor, DenseRule | None]:
    """The compressor, and the rule it was written with in `per-parameter(…)`."""
    method, rule = without_parts(from_spec(compressor))
    if "loss" in method.contract.needs:
        raise ValueError(f"compressor must not need the loss, which no hook gets, got {method}")
    return method, rule


def chosen_rule(arguments: DenseRule, written: DenseRule | None) -> DenseRule:
    """The rule of the compressor, else the rule of the arguments.

    Raises:
        ValueError: Both were given, and differ.
    """
    if written and arguments not in (DenseRule(), written):
        rule = "min_numel and min_dims must stand in per-parameter(…) or in the arguments"
        raise ValueError(f"{rule}, got {written} there and {arguments} as arguments")
    return written or arguments


def agree_on(settings: Mapping[str, Any], names: Names, group: Group) -> None:
    """Compare settings and parameter names over the workers.

    Raises:
        ValueError: They differ.
    """
    own = digest(f"{settings} {names.order}")
    others = [worker for worker, (other,) in enumerate(group.share(own)) if other != own]
    if others:
        named = f" and {len(names.order)} names" if names.named else ""
        fact = f"got {settings}{named} on worker {group.rank}, others on {others}"
        raise ValueError(f"settings must be the same on all workers, {fact}")


def try_exchange(compressor: Compressor, seed: int, group: Group) -> None:
    """Exchange a matrix and a vector, so that a backend that cannot is found before the training.

    Raises:
        RuntimeError: The backend lacks a collective of this compressor.
    """
    numbers = torch.arange(1.0, math.prod(TRIAL) + 1, device=group.device)
    rng = Rng(seed, 0, "trial", group.rank, group.workers)
    exchanges = [
        compressor.exchange(grad, compressor.init(grad), rng)
        for grad in (numbers.view(TRIAL), numbers)
    ]
    try:
        drive(fused(exchanges), group)
    except CollectiveError as error:
        backend = dist.get_backend(group.group)
        raise RuntimeError(
            f"cannot exchange {compressor} over the backend {backend}: {error}"
        ) from error


def device_of(process_group: Any) -> torch.device:
    """The device on which the backend of a process group sends tensors."""
    if "nccl" in dist.get_backend(process_group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
