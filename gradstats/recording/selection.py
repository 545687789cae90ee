"""Which parameters are recorded, by which names, and which of their elements are tracked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.lowrank.tables import matrices_by_parameter
from gradstats.patterns import matching
from gradstats.store import Parameter

#: Attribute names that torch's wrappers put between a module and its parameters.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
Optimizers = Optimizer | Sequence[Optimizer]


@dataclass(frozen=True)
class Selected:
    """One parameter to record: its clean name, the tensor, its owner's class, other names.

    It is sparse if its owner says that it makes sparse gradients, as an Embedding may. Of its
    matrices see `gradstats.store.Parameter`.
    """

    name: str
    tensor: nn.Parameter
    module_type: str
    aliases: tuple[str, ...] = ()
    sparse: bool = False
    matrices: int | None = None


def select(
    model: nn.Module, optimizers: Sequence[Optimizer], patterns: str | Sequence[str]
) -> tuple[Selected, ...]:
    """Find the parameters in `optimizers` whose name matches a glob, in the model's order.

    Frozen parameters count when the optimizer holds them: they may be unfrozen later. A tied
    parameter appears once, under its first name, and matches by any of its names.

    Raises:
        ValueError: The model, the optimizer or the globs leave nothing to record, or a parameter
            cannot be recorded.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named = list(_named_parameters(unwrap_model(model)))
    if not named:
        raise ValueError(f"model must have parameters, got {type(model).__name__} without any")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(tensor): tensor for group in groups for tensor in group["params"]}
    trained = [one for one in named if id(one.tensor) in held and _recordable(one)]
    if held and not any(id(one.tensor) in held for one in named):
        trained = _copies(named, list(held.values()), type(model).__name__)
    if not any(one.tensor.requires_grad for one in trained):
        raise ValueError(
            f"cannot record {type(model).__name__}: the optimizer holds {len(trained)} of its "
            f"{len(named)} parameters and none of them requires a gradient; pass the optimizer "
            "that trains this model"
        )
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    every = [name for one in trained for name in (one.name, *one.aliases)]
    names = {name for glob in globs for name in matching(every, glob)}
    chosen = tuple(one for one in trained if names & {one.name, *one.aliases})
    if not chosen:
        raise ValueError(
            f"parameters must match a name of the model, got {patterns!r}; "
            f"names: {_shortened([one.name for one in trained])}"
        )
    _check(chosen)
    return chosen


def _recordable(one: Selected) -> bool:
    """Not a frozen weight of a kind that never gets a gradient: quantized codes, float8."""
    return one.tensor.requires_grad or (
        one.tensor.is_floating_point() and one.tensor.dtype.itemsize > 1
    )


def left_out(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of parameters that an optimizer holds and that cannot get a gradient."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(tensor) for group in groups for tensor in group["params"]}
    every = _named_parameters(unwrap_model(model))
    return [one.name for one in every if id(one.tensor) in held and not _recordable(one)]


def _copies(named: Sequence[Selected], held: list[Tensor], model: str) -> list[Selected]:
    """The optimizer's copies of the model's parameters, such as float32 masters, by their names.

    A copy is what has the shape and the values of its parameter; of several alike the first.

    Raises:
        ValueError: They are not one copy of each parameter that is trained.
    """
    trained = [one for one in named if one.tensor.requires_grad]
    copies, left = [], list(held)
    for one in trained:
        place = next((i for i, tensor in enumerate(left) if _is_copy(tensor, one.tensor)), None)
        if place is not None:
            copies.append(replace(one, tensor=cast(nn.Parameter, left.pop(place)), sparse=False))
    if left or len(copies) != len(trained):
        raise ValueError(
            f"cannot record {model}: the optimizer holds none of its {len(named)} parameters, and "
            f"its {len(held)} tensors are no copies of them, equal in shape and value; pass the "
            "optimizer that trains this model, or as the model a torch.nn.ParameterList of the "
            "tensors that the optimizer holds"
        )
    return copies


def _is_copy(tensor: Tensor, parameter: Tensor) -> bool:
    same = tensor.shape == parameter.shape and tensor.device == parameter.device
    return same and torch.equal(tensor.detach().to(parameter.dtype), parameter.detach())


def gradient_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of a parameter's gradient, which may be another than its own."""
    if tensor.grad is not None:
        return tensor.grad.dtype
    return getattr(tensor, "grad_dtype", None) or tensor.dtype


def check_model(model: object) -> None:
    """Raise TypeError unless a model is a module of torch's."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, DataParallel, compile and their like."""
    while [name for name, _ in model.named_children()] in (["module"], ["_orig_mod"]):
        if any(parameter is not None for parameter in model._parameters.values()):
            break
        (model,) = model.children()
    return model


def unwrap_optimizer(optimizer: object) -> Optimizer:
    """Return the torch optimizer inside wrappers that keep it in `.optimizer`.

    Raises:
        TypeError: There is no torch optimizer inside.
    """
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or wrap one as .optimizer, "
            f"got {type(optimizer).__name__}"
        )
    return inner


def clean_name(name: str) -> str:
    """Drop the parts of a dotted name that wrappers inside the model added.

    Example:
        >>> clean_name("layers.0._orig_mod.linear.weight")
        'layers.0.linear.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _named_parameters(model: nn.Module) -> Iterator[Selected]:
    names: dict[int, list[str]] = {}
    first_seen: dict[int, tuple[nn.Parameter, str, bool]] = {}
    for owner_name, owner in model.named_modules(remove_duplicate=False):
        # by the method of torch's class: a model's own may need other arguments
        for own_name, tensor in nn.Module.named_parameters(owner, owner_name, recurse=False):
            names.setdefault(id(tensor), []).append(clean_name(own_name))
            sparse = getattr(owner, "sparse", False) is True
            first_seen.setdefault(id(tensor), (tensor, _kind(owner), sparse))
    try:
        matrices = matrices_by_parameter(model)
    except Exception:  # of a model unlike any: readers then go by names and shapes
        matrices = {}
    for key, (tensor, module_type, sparse) in first_seen.items():
        first, *others = dict.fromkeys(names[key])
        yield Selected(first, tensor, module_type, tuple(others), sparse, matrices.get(key))


def _kind(owner: nn.Module) -> str:
    """Class of the module that a parameter belongs to; of FSDP1's flat ones, what it wraps."""
    return type(getattr(owner, "_fsdp_wrapped_module", owner)).__name__


def _shortened(names: Sequence[str], most: int = 12) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _check(chosen: Sequence[Selected]) -> None:
    for one in chosen:
        if not one.tensor.is_floating_point():
            raise ValueError(
                f"parameters must be real floating point, got {one.name!r} with "
                f"{one.tensor.dtype}; leave it out with parameters="
            )
    devices = sorted({str(one.tensor.device) for one in chosen})
    if len(devices) > 1 or devices == [str(torch.device("meta"))]:
        raise ValueError(
            f"parameters must be on one device that holds data, got {devices}; "
            "select some with parameters="
        )


def row_widths(
    table: Sequence[Parameter], element_ids: Mapping[str, np.ndarray] | None = None
) -> dict[str, int]:
    """Elements of a row by dtype: all of them, or the sampled ones."""
    if element_ids is not None:
        return {dtype: len(ids) for dtype, ids in element_ids.items()}
    widths: dict[str, int] = {}
    for parameter in table:
        dense = parameter.numel if parameter.layout == "dense" else 0
        widths[parameter.dtype] = widths.get(parameter.dtype, 0) + dense
    return widths


def sample_elements(
    table: Sequence[Parameter], count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw `count` elements of a row uniformly without replacement; all when there are fewer.

    Returns:
        Sorted int64 positions in the flat vector of each dtype that has any.
    """
    widths = row_widths(table)
    total = sum(widths.values())
    # numpy draws without replacement in memory proportional to count; torch would permute all
    drawn = np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False))
    ids: dict[str, np.ndarray] = {}
    start = 0
    for dtype, width in widths.items():
        first, last = np.searchsorted(drawn, (start, start + width))
        if first < last:
            ids[dtype] = drawn[first:last].astype(np.int64) - start
        start += width
    return ids


def unwrap_optimizers(optimizer: Optimizers) -> list[Optimizer]:
    """The torch optimizers of what a user passes: one, a wrapper, or several.

    Raises:
        TypeError: There is no torch optimizer inside, or none that takes hooks.
        ValueError: An empty sequence.
    """
    if isinstance(optimizer, Sequence):
        if not optimizer:
            raise ValueError("optimizer must be an optimizer or a list of some, got none")
        return [_hooked(unwrap_optimizer(one)) for one in optimizer]
    return [_hooked(unwrap_optimizer(optimizer))]


def _hooked(optimizer: Optimizer) -> Optimizer:
    """Check that torch calls hooks on an optimizer.

    Raises:
        TypeError: It does not: a wrapper that never ran Optimizer.__init__.
    """
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return optimizer
    kind = type(optimizer).__name__
    inner = [name for name, one in vars(optimizer).items() if isinstance(one, Optimizer)]
    names = " or ".join(f"optimizer.{name}" for name in inner) or "the optimizer that it wraps"
    raise TypeError(
        f"cannot record {kind}: it never ran Optimizer.__init__, so that torch calls no hooks "
        f"on it; pass {names}"
    )
