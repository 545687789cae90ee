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
    """A leaf that is a mean over the elements of a vector; 0 while it is unknown.

    A part starts with the mean of its vector; a joined vector gets the mean over its parts.
    """


def mapped(function: Callable[..., Any], *states: State) -> State:
    """Apply a function to the corresponding leaves of trees of one form.

    If tuples differ in length, the function gets the leaf of the first tree only.
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
    """Split a state into those of consecutive parts of a vector.

    A tensor with one element per element of the vector is cut; other leaves are copied.

    Example:
        >>> divided((7, torch.arange(3)), [1, 2])
        [(7, tensor([0])), (7, tensor([1, 2]))]
    """
    total = sum(numels)

    def piece(leaf: Any, part: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.numel() != total:
            return leaf.clone()
        return torch.split(leaf.reshape(-1), list(numels))[part].clone()

    return [mapped(lambda leaf, i=i: piece(leaf, i), state) for i in range(len(numels))]


def joined(states: Sequence[State], numels: Sequence[int]) -> State:
    """Join the states of consecutive parts into the state of the vector.

    Tensors with one element per element of their part are concatenated; of other leaves the first
    part's is taken.

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
    """Mean over the parts whose mean is known; bit for bit if they are all equal."""
    known = [(mean, numel) for mean, numel in zip(means, numels, strict=True) if mean]
    if len({mean for mean, _ in known}) < 2:
        return known[0][0] if known else Mean()
    total = sum(numel for _, numel in known)
    return Mean(sum(mean * (numel / total) for mean, numel in known))


def first_state(compressor: object, states: Sequence[State], worker: int, workers: int) -> State:
    """Define `Compressor.resharded` for methods whose workers all have the same state."""
    return states[0]


def own_share(tensors: Sequence[Tensor], worker: int, workers: int) -> Tensor:
    r"""Return worker w's share of n' after a change: :math:`\frac{n'}{n} \sum_{v \equiv w} x_v`.

    The mean over the workers stays the same, and so does what is still to be sent.

    Example:
        >>> own_share([torch.ones(1), torch.zeros(1), torch.full((1,), 3.0)], 0, 2)
        tensor([2.6667])
    """
    total = torch.zeros_like(tensors[0])
    for tensor in tensors[worker::workers]:
        total += tensor * (workers / len(tensors))
    return total


def plain(state: State) -> Any:
    """Return the state as dicts, tuples, tensors and numbers, which `torch.load` reads safely."""
    if is_dataclass(state) and not isinstance(state, type):
        return {field.name: plain(getattr(state, field.name)) for field in fields(state)}
    if isinstance(state, tuple | list):
        return type(state)(plain(each) for each in state)
    if isinstance(state, Mean):
        return float(state)
    return state.detach().cpu().clone() if isinstance(state, Tensor) else state


def restored(template: State, saved: Any) -> State:
    """Return the state whose `plain` form is `saved`, with its own tensors.

    `template` has the same form, for example the state that `init` returns; its last element is
    also the form of the further elements of a longer tuple. What was saved as None stays fresh.
    """
    if saved is None and is_dataclass(template):
        return template
    if is_dataclass(template) and not isinstance(template, type):
        values = {
            field.name: restored(getattr(template, field.name), saved[field.name])
            for field in fields(template)
        }
        return replace(template, **values)
    if isinstance(template, tuple | list):
        further = repeat(template[-1] if template else None)
        pairs = zip(chain(template, further), saved, strict=False)
        return type(template)(restored(*pair) for pair in pairs)
    if isinstance(template, Mean):
        return Mean(saved)
    if isinstance(saved, Tensor):
        device = template.device if isinstance(template, Tensor) else saved.device
        return saved.to(device, copy=True)
    return saved
