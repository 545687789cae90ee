"""Which entries of a file are gradients: of a checkpoint, a tree, a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from gradstats.settings import SettingError

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
        key: name of an entry, or of a nested one; "*": all entries; "": the only candidate.

    Returns:
        The chosen entries by name, and by name what the other entries are.

    Raises:
        ValueError: there is no tensor, or it is not clear which entry is meant.
    """
    if isinstance(raw, (torch.Tensor, np.ndarray)):
        return {"gradient": raw}, {}
    entries = _entries(raw)
    _check_gradients(raw, entries, key)
    if key == ALL:
        return _by_name(_flattened(raw)), {}
    if key:
        return _under(entries, key)
    inner = {name: value for name, value in entries.items() if _is_branch(value)}
    aside = {name: "no gradients" for name, value in inner.items() if _is_aside(name, value)}
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
        # the name of a wrapper is no part of what is in it
        selected, more = _inside(inner[name], "" if name.lower() in WRAPPERS else f"{name}.")
        return selected, {**aside, **others, **rest, **more}
    several = ", ".join(repr(name) for name in [*branches, *direct][:MOST_NAMED])
    remedy = "choose one with --key NAME, or all with --key '*'"
    if isinstance(raw, (list, tuple)) and not own:
        remedy += "; if each is a step, save each to a file of its own"
    raise ValueError(f"which entry holds the gradients is not clear: {several}; {remedy}")


def _check_gradients(raw: Any, entries: Mapping[str, Any], key: str) -> None:
    """Refuse what holds no arrays, and an optimizer's state unless its entries are asked for."""
    if not key and _is_optimizer(raw):
        remedy = "take all of it with --key '*'"
        raise ValueError(f"it is the state of an optimizer, which holds no gradients; {remedy}")
    if _holds_arrays(raw):
        return
    if entries and all(value is None for value in entries.values()):
        count = "its one entry is" if len(entries) == 1 else f"all {len(entries)} entries are"
        raise ValueError(f"{count} None, so no parameter has a gradient; leave the file out")
    without = " without any" if entries else " without entries"
    rule = "a file must hold a tensor or a dict of tensors"
    raise ValueError(f"{rule}, got {kind_of(raw)}{without if isinstance(raw, Mapping) else ''}")


def _is_aside(name: str, value: Any) -> bool:
    """Does an entry hold tensors and no gradients, by its name or as an optimizer's state?"""
    several = list(value.values()) if isinstance(value, Mapping) else list(value)
    return name.lower() in ASIDE or _is_optimizer(value) or all(map(_is_optimizer, several))


def _is_optimizer(value: Any) -> bool:
    """Is it what `Optimizer.state_dict` returns?"""
    if not isinstance(value, Mapping) or not {"state", "param_groups"} <= value.keys():
        return False
    groups = value["param_groups"]
    return isinstance(groups, list | tuple) and all(
        isinstance(group, Mapping) and "params" in group for group in groups
    )


def _inside(value: Any, before: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of an entry, without optimizers beside them, and what those are."""
    entries = _entries(value)
    if not any(_is_branch(each) and _is_aside(name, each) for name, each in entries.items()):
        return _by_name(_flattened(value, before)), {}
    selected, aside = chosen(value, "")
    named = {f"{before}{name}": each for name, each in selected.items()}
    return named, {f"{before}{name}": kind for name, kind in aside.items()}


def _under(entries: Mapping[str, Any], key: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of the entry that is asked for, or of one inside it: "state.model"."""
    value: Any = entries
    for name in [key] if key in entries else key.split("."):
        inner = _entries(value)
        if name not in inner:
            names = ", ".join(map(repr, list(inner)[:MOST_NAMED])) or "none"
            raise SettingError("key", f"must be an entry of it, one of {names}, got {key!r}")
        value = inner[name]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {key: value}, {}
    return (_by_name(_flattened(value)), {}) if _is_optimizer(value) else _inside(value)


def _entries(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return _by_name((str(name), each) for name, each in value.items())
    if _is_named(value):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return {str(place): each for place, each in enumerate(value)}
    return {}


def _is_named(value: Any) -> bool:
    """Is it a list of (name, value), as `list(model.named_parameters())`, each name once?"""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if not all(isinstance(each, (list, tuple)) and len(each) == 2 for each in value):
        return False
    names = {name for name, _ in value if isinstance(name, str)}
    return len(names) == len(value)


def _flattened(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in _entries(value).items():
        if _is_branch(each):
            yield from _flattened(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", each


def _by_name(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of (name, value), in which no value takes another's place."""
    entries: dict[str, Any] = {}
    for name, value in named:
        if name in entries:
            fact = f"two entries have the name {name!r} once the names of their dicts are joined"
            raise ValueError(f"{fact}; choose one of the dicts with --key NAME, or rename one")
        entries[name] = value
    return entries


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
