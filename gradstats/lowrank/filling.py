"""Factors from the weights of a trained layer: the balanced truncated SVD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradstats.lowrank.layers import LowRankAttention, LowRankConv2d, LowRankLinear
from gradstats.lowrank.recurrent import LowRankLSTM
from gradstats.lowrank.rules import GATES


def balanced(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""The best approximation of rank r in two factors of equal norm.

    .. math:: W \approx U_r \Sigma_r V_r^T, \quad
              \text{second} = U_r \Sigma_r^{1/2}, \quad \text{first} = \Sigma_r^{1/2} V_r^T

    Args:
        weight: W, `[m, n]`; decomposed in float32 where it has 16 bits.
        rank: r.

    Returns:
        second, `[m, r]`, and first, `[r, n]`, of the weight's dtype.
    """
    wide = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    u, sigma, vt = torch.linalg.svd(wide, full_matrices=False)
    root = sigma[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * vt[:rank]).to(weight.dtype)


@torch.no_grad()
def fill(new: nn.Module, layer: nn.Module, name: str = "") -> None:
    """Give a layer of low rank the factors and the biases of the layer whose place it takes.

    Args:
        new: of low rank.
        layer: of full rank.
        name: in the model, for the message.

    Raises:
        ValueError: a weight of the layer has a NaN or an infinity.
    """
    for which, parameter in layer.named_parameters():
        if parameter.dim() > 1 and not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            what = f"{name}.{which}" if name else which
            raise ValueError(f"cannot factorize {what}: {bad} of its elements are NaN or inf")
    if isinstance(new, LowRankConv2d) and isinstance(layer, nn.Conv2d):
        _fill_conv(new, layer)
    elif isinstance(new, LowRankLSTM) and isinstance(layer, nn.LSTM):
        _fill_lstm(new, layer)
    elif isinstance(new, LowRankAttention) and isinstance(layer, nn.MultiheadAttention):
        _fill_attention(new, layer)
    elif isinstance(new, LowRankLinear) and isinstance(layer, nn.Linear):
        _fill_linear(new, layer.weight, layer.bias)


def _fill_linear(new: LowRankLinear, weight: Tensor, bias: Tensor | None) -> None:
    second, first = balanced(weight, new.rank)
    new.second.weight.copy_(second)
    new.first.weight.copy_(first)
    if bias is not None and new.second.bias is not None:
        new.second.bias.copy_(bias)


def _fill_conv(new: LowRankConv2d, layer: nn.Conv2d) -> None:
    """Each group is a matrix of its own."""
    pieces = [balanced(group.flatten(1), new.rank) for group in layer.weight.chunk(layer.groups)]
    new.first.weight.copy_(torch.cat([first for _, first in pieces]).view_as(new.first.weight))
    new.second.weight.copy_(torch.cat([second for second, _ in pieces])[..., None, None])
    if layer.bias is not None and new.second.bias is not None:
        new.second.bias.copy_(layer.bias)


def _fill_lstm(new: LowRankLSTM, layer: nn.LSTM) -> None:
    """Gate by gate; the two biases of a gate become their sum."""
    for name, cell in new.named_cells():
        for kind in ("ih", "hh"):
            gates = getattr(layer, f"weight_{kind}{name}").chunk(GATES)
            pieces = [balanced(gate, new.rank) for gate in gates]
            getattr(cell, f"second_{kind}").copy_(torch.stack([s for s, _ in pieces]))
            getattr(cell, f"first_{kind}").copy_(torch.stack([f for _, f in pieces]))
        if cell.bias is not None:
            both = getattr(layer, f"bias_ih{name}") + getattr(layer, f"bias_hh{name}")
            cell.bias.copy_(both.view(GATES, -1))


def _fill_attention(new: LowRankAttention, layer: nn.MultiheadAttention) -> None:
    weights: tuple[Any, ...] = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    for project, weight, bias in zip(
        (new.query, new.key, new.value), weights, biases, strict=True
    ):
        _fill_linear(project, weight, bias)
    _fill_linear(new.out_proj, layer.out_proj.weight, layer.out_proj.bias)
