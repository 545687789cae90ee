"""An optimizer of the same class and settings for the parameters of a factorised model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Replaced = Mapping[Tensor, tuple[Tensor, ...]]
Settings = dict[str, Any]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: `initial_lr` is what a scheduler left: with it the next one would start where that one did.
NOT_COPIED = ("params", "param_names", "initial_lr")


def rebuilt(
    optimizer: Optimizer, replaced: Replaced, names: Mapping[Tensor, str] | None = None
) -> Optimizer:
    """Make a new optimizer in which the successors of a parameter stand in its group.

    The constructor gets those of the settings that it takes; what its class or others added to
    the groups (AdamW's `decoupled_weight_decay`) is added to the new groups.

    Args:
        optimizer: The old optimizer, which is not changed.
        replaced: By each parameter that is gone, the parameters that took its place.
        names: Names of the new parameters, for an optimizer of named parameters.

    Raises:
        TypeError: `optimizer` is no optimizer of torch's.
        ValueError: The constructor needs an argument that is not among the settings, or raises.
    """
    kind = type(optimizer)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind.__name__}")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if replaced and not any(p in replaced for p in held):
        fact = "it holds none of the weights that are replaced"
        raise ValueError(f"optimizer must be of the model's parameters: {fact}")
    first, others = _arguments(kind, optimizer.defaults)
    kept = _attributes(optimizer, others)
    known = {"defaults": optimizer.defaults, **kept, **optimizer.defaults}
    copies: dict[int, Tensor] = {}
    settings = {name: _copied(known[name], copies) for name in others if name in known}
    groups = _groups(optimizer, replaced, names or {}, copies)
    try:
        fresh = _constructed(kind, first, groups, settings, ("params", *others))
    except Exception as error:
        fact = f"{type(error).__name__}: {error}; it got {', '.join((first, *settings))}"
        remedy = "factorize(model, warm=True) and make the optimizer anew"
        raise ValueError(f"cannot make a new {kind.__name__}: {fact}; {remedy}") from error
    for group, old in zip(fresh.param_groups, groups, strict=True):
        group.update({k: v for k, v in old.items() if k != "params"})
    return fresh


def _constructed(
    kind: type, first: str, groups: list[Settings], settings: Settings, names: tuple[str, ...]
) -> Optimizer:
    """The optimizer of whole groups, or of what its arguments name of them if it takes no more."""
    arguments: Settings = {first: [dict(group) for group in groups], **settings}
    try:
        fresh = kind(**arguments)
    except Exception:
        arguments[first] = [{k: v for k, v in each.items() if k in names} for each in groups]
        fresh = kind(**arguments)
    held = [sorted(id(p) for p in group["params"]) for group in fresh.param_groups]
    if held != [sorted(id(_tensor(p)) for p in group["params"]) for group in groups]:
        raise ValueError("it holds other parameters than it was given")
    typed: Optimizer = fresh
    return typed


def _arguments(kind: type, defaults: Settings) -> tuple[str, list[str]]:
    """The name of the argument for parameters, and the names of all others.

    A constructor that passes what it does not know to that of a base class takes its names too;
    `Optimizer` itself takes any.
    """
    names: dict[str, None] = {}
    for each in kind.__mro__:
        if each is Optimizer:
            names |= dict.fromkeys(defaults if names else ("params", "defaults"))
        if each is Optimizer or "__init__" not in vars(each):
            continue
        parameters = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
        names |= {one.name: None for one in parameters if one.kind not in VARIADIC}
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    first = "params" if "params" in names else next(iter(names))
    return first, [name for name in names if name != first]


def _attributes(optimizer: Optimizer, names: list[str]) -> Settings:
    """Arguments that the optimizer keeps under their own names, beside its `defaults`."""
    kept = vars(optimizer)
    present = [name for name in names if name in kept or f"_{name}" in kept]
    return {name: kept.get(name, kept.get(f"_{name}")) for name in present}


def _groups(
    optimizer: Optimizer,
    replaced: Replaced,
    names: Mapping[Tensor, str],
    copies: dict[int, Tensor],
) -> list[Settings]:
    """The groups with the successors: each once, in the group of the bias before the weight's."""
    groups = optimizer.param_groups
    held = [(number, p) for number, group in enumerate(groups) for p in group["params"]]
    home = {
        heir: number
        for number, parameter in sorted(held, key=lambda each: -each[1].dim())
        for heir in replaced.get(parameter, (parameter,))
    }
    fresh = []
    for number, group in enumerate(groups):
        rest = {k: _copied(v, copies) for k, v in group.items() if k not in NOT_COPIED}
        placed: dict[Tensor, str] = {
            heir: names.get(heir, name)
            for parameter, name in _named(group)
            for heir in replaced.get(parameter, (parameter,))
            if home[heir] == number
        }
        named = [(name, heir) for heir, name in placed.items()]
        fresh.append({**rest, "params": named if "param_names" in group else list(placed)})
    return fresh


def _named(group: Settings) -> Iterator[tuple[Tensor, str]]:
    nameless = [""] * len(group["params"])
    return zip(group["params"], group.get("param_names", nameless), strict=True)


def _tensor(parameter: Any) -> Tensor:
    tensor: Tensor = parameter[1] if isinstance(parameter, tuple) else parameter
    return tensor


def _copied(value: Any, copies: dict[int, Tensor]) -> Any:
    """A setting of its own: schedulers write to a learning rate that is a tensor.

    Args:
        value: The setting.
        copies: By the id of a tensor, its copy: groups that share one share one again.
    """
    if isinstance(value, Tensor):
        return copies.setdefault(id(value), value.detach().clone())
    if type(value) is tuple:
        return tuple(_copied(each, copies) for each in value)
    return value
