"""Make the layer of low rank that replaces a layer, and give it the old one's settings."""

from __future__ import annotations

from torch import Tensor, nn

from gradstats.lowrank.kinds import Weight, kind_of
from gradstats.lowrank.layers import LowRankAttention

Heirs = dict[Tensor, tuple[Tensor, ...]]
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def low_rank(layer: nn.Module, rank: int, *, extra_norm: bool) -> nn.Module:
    """A fresh layer of low rank; hooks, mode and frozenness are not passed on yet."""
    kind = kind_of(layer)
    return kind.make(layer, rank, **({"extra_norm": extra_norm} if kind.grouped else {}))


def heirs(new: nn.Module, layer: nn.Module) -> Heirs:
    """The parameters that take the place of each parameter of a layer.

    A norm between two factors comes after the weight and after the bias.
    """
    norm = getattr(new, "norm", None)
    more = () if norm is None else tuple(norm.parameters())
    return {
        old: (*one.heirs, *more)
        for one in kind_of(layer).successions(new, layer)
        for old in ((one.old,) if isinstance(one, Weight) else one.olds)
    }


def adopt(new: nn.Module, layer: nn.Module) -> None:
    """Give a new layer the hooks and the mode of the old one, and freeze what was frozen."""
    for name in HOOKS:
        setattr(new, name, getattr(layer, name))
    new.train(layer.training)
    trained = {
        id(heir)
        for parameter, taken in heirs(new, layer).items()
        if parameter.requires_grad
        for heir in taken
    }
    for parameter in new.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def put(model: nn.Module, layer: nn.Module, new: nn.Module) -> nn.Module:
    """The model with a layer replaced wherever it stands."""
    if layer is model:
        return new
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is layer:
                parent._modules[name] = new
    if isinstance(new, LowRankAttention):
        _without_nested_tensors(model, new)
    return model


def _without_nested_tensors(model: nn.Module, attention: LowRankAttention) -> None:
    """Encoders of transformers pack padded batches for the weights of torch's own attention."""
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and attention in encoder.modules():
            encoder.use_nested_tensor = False
