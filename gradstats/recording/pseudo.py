"""Pseudo-gradients as the training hands them over: named tensors, checked before they are copied.

A worker of DiLoCo and its kin takes some steps with an inner optimizer; parameters before minus
parameters after are what it gives to the outer optimizer in place of a gradient.
"""

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradstats.recording.row_layout import local
from gradstats.recording.selection import Selected
from gradstats.store import Parameter


def names_of(model: nn.Module, chosen: Sequence[Selected]) -> dict[str, int | None]:
    """The names under which a parameter of the model can be given.

    Args:
        model: As the user has it, wrapped or not.
        chosen: The parameters that are recorded, in the order of the table.

    Returns:
        By name, with and without what wrappers add to it, the parameter's place in `chosen`; None
        for parameters that are not recorded.
    """
    places = {id(one.tensor): place for place, one in enumerate(chosen)}
    named = model.named_parameters(remove_duplicate=False)
    names = {name: places.get(id(tensor)) for name, tensor in named}
    for place, one in enumerate(chosen):
        names |= dict.fromkeys((one.name, *one.aliases), place)
    return names


def checked_steps(inner_steps: int) -> int:
    """The number of inner steps.

    Raises:
        ValueError: It is no number of steps.
    """
    try:
        steps = operator.index(inner_steps)
    except TypeError:
        steps = -1
    if steps < 0:
        raise ValueError(f"inner_steps must be a number of steps, 0 or more, got {inner_steps!r}")
    return steps


def checked_gradients(
    named: object,
    names: Mapping[str, int | None],
    table: Sequence[Parameter],
) -> dict[int, Tensor]:
    """The gradients by the places of their parameters, in the dtypes of the table.

    Args:
        named: What the training gave.
        names: As `names_of` returns them.
        table: The parameters as this process holds them.

    Raises:
        TypeError: No mapping, or something in it is not a tensor.
        ValueError: An unknown name, another shape, a dtype that the table's does not hold exactly,
            or no gradient at all.
    """
    if not isinstance(named, Mapping):
        rule = "gradients must map names to tensors"
        raise TypeError(f"{rule}, got {type(named).__name__}")
    found: dict[int, Tensor] = {}
    for name, grad in named.items():
        if name not in names:
            raise ValueError(f"gradients must go by names of the model's parameters, got {name!r}")
        place = names[name]
        if place is not None:
            found[place] = _checked(name, grad, table[place])
    if not found:
        raise ValueError(f"gradients must name a recorded parameter, got {list(named)!r}")
    return found


def _checked(name: str, grad: Tensor, parameter: Parameter) -> Tensor:
    if not isinstance(grad, Tensor):
        raise TypeError(f"gradient of {name!r} must be a tensor, got {type(grad).__name__}")
    held, here = getattr(torch, parameter.dtype), local(grad)
    if tuple(here.shape) != parameter.shape:
        rule = f"gradient of {name!r} must have the shape {list(parameter.shape)}"
        raise ValueError(f"{rule}, got {list(here.shape)}")
    exact = grad.is_floating_point() and torch.promote_types(grad.dtype, held) == held
    if not exact:
        rule = f"gradient of {name!r} must be {held} or what that holds exactly"
        raise ValueError(f"{rule}, got {grad.dtype}; round it with .to({held})")
    return here if grad.dtype == held else here.to(held)
