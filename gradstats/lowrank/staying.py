"""Why a layer stays as it is: what a layer of low rank in its place would not do alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradstats.lowrank.kinds import FACTORED, kind_of

KEPT = (nn.Embedding, nn.EmbeddingBag)  # by design, as published
WITHOUT_A_RULE = (nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
NORMS = (nn.LayerNorm, nn.RMSNorm)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def parameters(module: nn.Module, *, recurse: bool = True) -> Iterator[nn.Parameter]:
    """By the method of torch's class: a module's own may need other arguments."""
    return (each for _, each in nn.Module.named_parameters(module, recurse=recurse))


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hold matrices themselves; attention is one layer, with what is in it."""
    inside: str | None = None
    for name, layer in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(layer, nn.utils.parametrize.ParametrizationList):
            continue  # the layer that it belongs to is named itself
        if isinstance(layer, FACTORED):
            inside = f"{name}." if name else ""
            yield name, layer
        elif any(is_lazy(p) or p.dim() > 1 for p in parameters(layer, recurse=False)):
            yield name, layer
        elif nn.utils.parametrize.is_parametrized(layer):
            yield name, layer
        elif weights_without_parameters(layer):
            inside = f"{name}." if name else ""
            yield name, layer


def weights_without_parameters(layer: nn.Module) -> str:
    """How a layer without parameters holds weights: packed, as torch quantizes, or in buffers."""
    if next(parameters(layer), None) is not None:
        return ""
    if type(layer).__module__.startswith("torch.ao.nn."):
        held = (value for module in layer.modules() for value in vars(module).values())
        return "packed" if any(isinstance(value, torch.ScriptObject) for value in held) else ""
    buffers = dict(nn.Module.named_buffers(layer, recurse=False)).items()
    return "in buffers" if any("weight" in name and b.dim() > 1 for name, b in buffers) else ""


class Places:
    """Where the layers and the parameters of a model stand.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int, list[tuple[str, nn.Module]]] = {}
        self._parents: dict[int, list[tuple[str, nn.Module]]] = {}
        self._listed: dict[int, str] = {}
        self._names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(name)
        for name, module in model.named_modules():
            for parameter in parameters(module, recurse=False):
                self._owners.setdefault(_key(parameter), []).append((name, module))
            for child in module._modules.values():
                self._parents.setdefault(id(child), []).append((name, module))
            for attribute, other in _plain_modules(module):
                where = f"{name}.{attribute}" if name else attribute
                self._listed.setdefault(id(other), where)

    def names(self, *modules: nn.Module) -> list[str]:
        """Every name of some modules: a shared one has several."""
        return [name for module in modules for name in self._names[id(module)]]

    def why(self, layer: nn.Module) -> str:
        """Why the layer cannot be replaced where it stands; "" where it can."""
        own = set(layer.modules())
        listed = [self._listed[id(module)] for module in own if id(module) in self._listed]
        if listed:
            return f"kept: {listed[0]} holds it too, which is not a module"
        owners = [owner for p in parameters(layer) for owner in self._owners[_key(p)]]
        inner = [parent for module in own - {layer} for parent in self._parents[id(module)]]
        others = {name or "the model" for name, m in (*owners, *inner) if m not in own}
        return f"kept: tied with {', '.join(sorted(others))}" if others else ""


def _key(parameter: Tensor) -> int:
    """The memory of a parameter, which tied ones share even where they are two objects."""
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return (parameter.data_ptr() if plain else 0) or id(parameter)


def _plain_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules among the attributes of a module, or in lists, tuples and dicts of them."""
    for name, value in vars(module).items():
        if name in ("_modules", "_parameters", "_buffers"):
            continue
        values = value.values() if isinstance(value, dict) else value
        inside = values if isinstance(value, list | tuple | dict) else [value]
        yield from ((name, each) for each in inside if isinstance(each, nn.Module))


def why_kept(layer: nn.Module, places: Places, *, hooks: bool = True) -> str:
    """Why a layer stays; "" where a layer of low rank can take its place.

    Args:
        layer: of a model.
        places: of that model.
        hooks: whether hooks that cannot be passed on count.
    """
    reason = _by_class(layer) or places.why(layer) or _by_form(layer)
    if hooks:
        reason = reason or _by_hooks(layer)
    return reason or kind_of(layer).stays(layer)


def _by_class(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if any(is_lazy(parameter) for parameter in parameters(layer)):
        return "kept: not initialised, pass a batch through the model first"
    if isinstance(layer, KEPT):
        return "kept: an embedding"
    if isinstance(layer, NORMS):
        return "kept: a normalisation"
    if nn.utils.parametrize.is_parametrized(layer):
        return "kept: its weight is parametrized"
    if how := weights_without_parameters(layer):
        return f"kept: its weights are {how}, no parameters"
    if not isinstance(layer, FACTORED):
        return "kept: a parameter of a class of its own"
    if type(layer) not in FACTORED:
        base = next(each.__name__ for each in FACTORED if isinstance(layer, each))
        return f"kept: a subclass of {base}, {type(layer).__module__}.{kind}"
    return ""


def _by_form(layer: nn.Module) -> str:
    """What was done to this one object since it was made."""
    for name, module in layer.named_modules():
        owner = f"{name}." if name else ""
        changed = [key for key in vars(module) if callable(getattr(type(module), key, None))]
        if changed:
            return f"kept: {owner}{changed[0]} is replaced on the object"
        if more := _more(module):
            return f"kept: {owner}{more[0]} is not of a plain {type(module).__name__}"
    names = [name for name, _ in nn.Module.named_parameters(layer, remove_duplicate=False)]
    if len(names) > len(list(parameters(layer))):
        return "kept: tied with itself"
    for name, parameter in nn.Module.named_parameters(layer):
        if type(parameter) is not nn.Parameter:
            return f"kept: its {name} is a {type(parameter).__name__}"
        if parameter.dtype not in FLOATS:
            return f"kept: its {name} is {str(parameter.dtype).removeprefix('torch.')}"
    return ""


def _by_hooks(layer: nn.Module) -> str:
    """Hooks that a layer of low rank would not call alike."""
    for name, module in layer.named_modules():
        if any(getattr(module, hooks, None) for hooks in STATE_HOOKS):
            return "kept: a hook on its state dict"
        if name and any(getattr(module, hooks) for hooks in CALL_HOOKS):
            return f"kept: a hook on {name}"
    if layer._backward_hooks and not layer._is_full_backward_hook:
        return "kept: a backward hook that is not full"
    for name, parameter in nn.Module.named_parameters(layer):
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"kept: a hook on its {name}"
    return ""


def _more(module: nn.Module) -> list[str]:
    """Names in a layer that its class does not make, and names that it makes and are gone."""
    must, may = {"weight"}, {"bias"}  # of the output projection of attention
    if type(module) in FACTORED:
        must, may = kind_of(module).names(module)
    own = [*module._parameters, *module._buffers, *module._modules]
    present = {name for name, p in module._parameters.items() if p is not None}
    return [name for name in own if name not in must | may] + sorted(must - present)
