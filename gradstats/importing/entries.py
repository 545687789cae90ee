"""Which entries of a file are gradients: of a checkpoint, a tree, a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

ALL = "*"  # of --key: everything in the file
GRADIENTS = frozenset({"grads", "gradients", "grad", "gradient"})
# entries of a checkpoint that hold what is meant: their own name is no part of a parameter's
WRAPPERS = GRADIENTS.union(
    "state_dict model_state model_state_dict model module".split(),
    "params parameters net network weights".split(),
)
# entries that hold tensors and no gradients
ASIDE = frozenset(
    "optimizer optimizers optimizer_state optimizer_state_dict optimizer_states opt_state optim "
    "lr_scheduler lr_schedulers scheduler scaler rng_state rng_states callbacks loops".split()
)
MOST_NAMED = 8


def chosen(raw: Any, key: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the entries of a file that may be gradients.

    Args:
        raw: what the file holds.
        key: name of an entry, or of one inside it; "*": all of them; "": the only one that may.

    Returns:
        What to look at by name, and what the others are.

    Raises:
        ValueError: there is no tensor, or it is not clear which entry is meant.
    """
    if isinstance(raw, (torch.Tensor, np.ndarray)):
        return {"gradient": raw}, {}
    if not _holds_arrays(raw):
        without = " without any" if isinstance(raw, Mapping) else ""
        rule = "a file must hold a tensor or a dict of tensors"
        raise ValueError(f"{rule}, got {kind_of(raw)}{without}")
    entries = _entries(raw)
    if key == ALL:
        return dict(_flattened(raw)), {}
    if key:
        return _under(entries, key), {}
    inner = {name: value for name, value in entries.items() if _is_branch(value)}
    aside = {name: "no gradients" for name in inner if name.lower() in ASIDE}
    branches = [name for name in inner if name not in aside]
    direct = {name: value for name, value in entries.items() if name not in inner}
    own = any(isinstance(value, (torch.Tensor, np.ndarray)) for value in direct.values())
    named = [name for name in branches if name.lower() in GRADIENTS]
    if own and not branches:
        return direct, aside
    if len(named) == 1 or (len(branches) == 1 and not own):
        (name,) = named or branches
        others = {other: "not chosen" for other in branches if other != name}
        rest = {other: kind_of(value) for other, value in direct.items()}
        return _under_one(name, inner[name]), {**aside, **others, **rest}
    several = ", ".join(repr(name) for name in [*branches, *direct][:MOST_NAMED])
    remedy = "choose one with --key NAME, or all with --key '*'"
    raise ValueError(f"it does not say which entry holds the gradients: {several}; {remedy}")


def _under_one(name: str, value: Any) -> dict[str, Any]:
    """The arrays of an entry; the name of a wrapper is no part of theirs."""
    return dict(_flattened(value, "" if name.lower() in WRAPPERS else f"{name}."))


def _under(entries: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arrays of the entry that is asked for, or of one inside it: "state.model"."""
    value: Any = entries
    for name in [key] if key in entries else key.split("."):
        inner = _entries(value)
        if name not in inner:
            there = ", ".join(map(repr, list(inner)[:MOST_NAMED])) or "none"
            raise ValueError(f"key must be an entry of it, one of {there}, got {key!r}")
        value = inner[name]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {key: value}
    return dict(_flattened(value))


def _entries(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name): each for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(place): each for place, each in enumerate(value)}
    return {}


def _flattened(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in _entries(value).items():
        if _is_branch(each):
            yield from _flattened(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", each


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return any(map(_holds_arrays, _entries(value).values()))
    return isinstance(value, (torch.Tensor, np.ndarray))


def _is_branch(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and _holds_arrays(value)


def kind_of(value: Any) -> str:
    """What a value is: a dtype, or a class."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return str(value.dtype).removeprefix("torch.")
    return type(value).__name__
