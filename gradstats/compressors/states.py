"""States of compressors as trees of dataclasses, tuples and tensors: to cut, join, save them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.rounds import State


class Mean(float):
    """A leaf that is a mean over the elements of a vector; 0 while nothing is known.

    A part has that of its whole until it knows better, a whole the mean of its parts'.
    """


def mapped(function: Callable[..., Any], *states: State) -> State:
    """A tree of what the function gives for the leaves at one place of trees of one form.

    Where tuples differ in length, the first one counts.
    """
    first = states[0]
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return replace(
            first,
            **{name: mapped(function, *(getattr(s, name) for s in states)) for name in names},
        )
    if isinstance(first, tuple | list):
        alike = all(len(state) == len(first) for state in states)
        rows = zip(*states, strict=True) if alike else ((each,) for each in first)
        return type(first)(mapped(function, *row) for row in rows)
    return function(*states)


def divided(state: State, numels: Sequence[int]) -> list[State]:
    """The states of consecutive parts of a vector: what has an element for each of its is cut.

    Example:
        >>> divided((7, torch.arange(3)), [1, 2])
        [(7, tensor([0])), (7, tensor([1, 2]))]
    """
    total = sum(numels)

    def piece(leaf: Any, place: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.numel() != total:
            return leaf.clone()
        return torch.split(leaf.reshape(-1), list(numels))[place].clone()

    return [mapped(lambda leaf, i=i: piece(leaf, i), state) for i in range(len(numels))]


def joined(states: Sequence[State], numels: Sequence[int]) -> State:
    """The state of a vector, from those of its parts; what has no element for each is the first's.

    Example:
        >>> joined([(7, torch.arange(1)), (8, torch.arange(2))], [1, 2])
        (7, tensor([0, 0, 1]))
    """

    def together(*leaves: Any) -> Any:
        if isinstance(leaves[0], Mean) and len(leaves) == len(numels):
            return _mean(leaves, numels)
        whole = len(leaves) == len(numels) and all(
            isinstance(leaf, Tensor) and leaf.numel() == numel
            for leaf, numel in zip(leaves, numels, strict=True)
        )
        return torch.cat([leaf.reshape(-1) for leaf in leaves]) if whole else leaves[0]

    return mapped(together, *states)


def _mean(means: Sequence[Mean], numels: Sequence[int]) -> Mean:
    """Over the parts of which something is known; to the bit where they are alike."""
    known = [(mean, numel) for mean, numel in zip(means, numels, strict=True) if mean]
    if len({mean for mean, _ in known}) < 2:
        return known[0][0] if known else Mean()
    total = sum(numel for _, numel in known)
    return Mean(sum(mean * (numel / total) for mean, numel in known))


def first_state(compressor: object, states: Sequence[State], worker: int, workers: int) -> State:
    """`Compressor.resharded` where all workers have the same state, or none needs its own."""
    return states[0]


def own_share(tensors: Sequence[Tensor], worker: int, workers: int) -> Tensor:
    r"""What worker w of n' takes over from n: :math:`\frac{n'}{n} \sum_{v \equiv w} x_v`.

    The mean over the workers stays, and with it what is still to be delivered.

    Example:
        >>> own_share([torch.ones(1), torch.zeros(1), torch.full((1,), 3.0)], 0, 2)
        tensor([2.6667])
    """
    total = torch.zeros_like(tensors[0])
    for tensor in tensors[worker::workers]:
        total += tensor * (workers / len(tensors))
    return total


def plain(state: State) -> Any:
    """The state in dicts, tuples, tensors and numbers, which `torch.load` reads without code."""
    if is_dataclass(state) and not isinstance(state, type):
        return {field.name: plain(getattr(state, field.name)) for field in fields(state)}
    if isinstance(state, tuple | list):
        return type(state)(plain(each) for each in state)
    if isinstance(state, Mean):
        return float(state)
    return state.detach().cpu().clone() if isinstance(state, Tensor) else state


def restored(template: State, saved: Any) -> State:
    """The state of which `plain` is `saved`, with tensors of its own.

    `template` has its form, as a first state has.
    """
    if is_dataclass(template) and not isinstance(template, type):
        found = {
            field.name: restored(getattr(template, field.name), saved[field.name])
            for field in fields(template)
        }
        return replace(template, **found)
    if isinstance(template, tuple | list):
        pairs = zip(chain(template, repeat(None)), saved, strict=False)
        return type(template)(restored(*pair) for pair in pairs)
    if isinstance(template, Mean):
        return Mean(saved)
    if isinstance(saved, Tensor):
        device = template.device if isinstance(template, Tensor) else saved.device
        return saved.to(device, copy=True)
    return saved
