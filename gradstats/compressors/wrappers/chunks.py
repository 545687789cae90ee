"""Chunks of a vector, one per worker, and the methods that can encode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import State
from gradstats.compressors.states import mapped
from gradstats.compressors.wrappers.memory import Memory
from gradstats.rng import Rng

ALIGNED = 32  # elements: chunks begin where the blocks of block formats do


def bounds(numel: int, workers: int) -> list[int]:
    """Where the chunks of n workers begin, and the last ends: equal ones, aligned to 32 elements.

    Example:
        >>> bounds(100, 2), bounds(5, 4)
        ([0, 64, 100], [0, 5, 5, 5, 5])
    """
    each = -(-numel // workers)
    each = -(-each // ALIGNED) * ALIGNED
    return [min(index * each, numel) for index in range(workers + 1)]


def chunks(numel: int, workers: int) -> list[slice]:
    """The chunk of each worker; those of the last workers may be empty."""
    return [slice(*ends) for ends in pairwise(bounds(numel, workers))]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gradients are summed: float32 for those of 16 bits."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def named(rng: Rng, what: str) -> Rng:
    """Random numbers of their own for one message of a step."""
    return replace(rng, parameter=f"{rng.parameter}, {what}")


def check_inside(wrapper: Compressor, setting: str) -> None:
    """Raise ValueError unless a method can encode chunks of gradients and of their sums.

    Args:
        wrapper: what goes around the method.
        setting: of the wrapper, the method.
    """
    part, name = getattr(wrapper, setting), wrapper.name
    if not isinstance(part, Compressor):
        raise ValueError(f"{setting} of {name} must be a compressor, got {part!r}")
    if isinstance(part, Memory):
        example = _with(part, "compressor", _with(wrapper, setting, part.compressor))
        raise ValueError(f"a memory must stand outermost, as in {example}, got {part} inside")
    if needs := part.contract.needs:
        rule = f"{setting} of {name} must be a method of vectors"
        raise ValueError(f"{rule}, which needs the gradient alone, got {part}: {needs[0]}")
    if type(part).exchange is not Compressor.exchange:
        rule = f"{setting} of {name} must be a method that sends one message"
        raise ValueError(f"{rule}, got {part}, whose exchange is another")
    trial = torch.arange(1.0, 8.0)
    if any(tensor.numel() == trial.numel() for tensor in _tensors(part.init(trial))):
        rule = f"{setting} of {name} must be a method without a memory"
        raise ValueError(f"{rule}, which stands outermost, got {part}")


def _with(around: Compressor, setting: str, value: Compressor) -> Compressor:
    changed: dict[str, Any] = {setting: value}
    return replace(around, **changed)  # type: ignore[type-var]


def _tensors(state: State) -> Iterator[Tensor]:
    leaves: list[Any] = []
    mapped(leaves.append, state)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))
