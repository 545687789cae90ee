"""Make the layer of low rank that takes a layer's place, with what the old one was set to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gradstats.lowrank.layers import LowRankAttention, LowRankConv2d, LowRankLinear
from gradstats.lowrank.recurrent import LowRankCell, LowRankLSTM

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
    if isinstance(layer, nn.Conv2d):
        return LowRankConv2d(layer, rank, extra_norm=extra_norm)
    if isinstance(layer, nn.LSTM):
        return LowRankLSTM(layer, rank)
    if isinstance(layer, nn.MultiheadAttention):
        return LowRankAttention(layer, rank)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be one that has a rule, got {type(layer).__name__}")
    where: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    m, n = layer.weight.shape
    return LowRankLinear(n, m, rank, bias=layer.bias is not None, **where)


def heirs(new: nn.Module, layer: nn.Module) -> Heirs:
    """By each parameter of a layer, those of the new layer that take its place.

    A norm between two factors comes after the weight and after the bias.
    """
    return dict(_heirs(new, layer))


def _heirs(new: nn.Module, layer: nn.Module) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    if isinstance(new, LowRankLinear | LowRankConv2d):
        norm = tuple(new.norm.parameters()) if isinstance(new, LowRankConv2d) else ()
        yield from _of_product(new, layer.weight, layer.bias, norm)
    elif isinstance(new, LowRankLSTM) and isinstance(layer, nn.LSTM):
        for name, cell in new.named_cells():
            yield from _of_cell(cell, layer, name)
    elif isinstance(new, LowRankAttention) and isinstance(layer, nn.MultiheadAttention):
        yield from _of_attention(new, layer)


def _of_product(
    new: LowRankLinear | LowRankConv2d, weight: Any, bias: Any, norm: tuple[Tensor, ...] = ()
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    yield weight, (new.first.weight, new.second.weight, *norm)
    if bias is not None and new.second.bias is not None:
        yield bias, (new.second.bias, *norm)


def _of_cell(
    cell: LowRankCell, lstm: nn.LSTM, name: str
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    for kind in ("ih", "hh"):
        factors = getattr(cell, f"first_{kind}"), getattr(cell, f"second_{kind}")
        yield getattr(lstm, f"weight_{kind}{name}"), factors
        if cell.bias is not None:
            yield getattr(lstm, f"bias_{kind}{name}"), (cell.bias,)


def _of_attention(
    new: LowRankAttention, layer: nn.MultiheadAttention
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    projections = (new.query, new.key, new.value)
    factors = [(each.first.weight, each.second.weight) for each in projections]
    if layer._qkv_same_embed_dim:
        yield layer.in_proj_weight, tuple(factor for pair in factors for factor in pair)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        yield from zip(weights, factors, strict=True)
    if layer.in_proj_bias is not None:
        yield layer.in_proj_bias, tuple(each.second.bias for each in projections)
    yield from _of_product(new.out_proj, layer.out_proj.weight, layer.out_proj.bias)


def adopt(new: nn.Module, layer: nn.Module) -> None:
    """Hooks and mode of the layer, and of each parameter whether it trains."""
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
