"""Factors from the weights of a trained layer, and the optimizer that goes on with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.lowrank.factorizing import Factorization, factorize
from gradstats.lowrank.layers import (
    GATES,
    LowRankAttention,
    LowRankConv2d,
    LowRankLinear,
    LowRankLSTM,
)


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
    wide = weight if weight.dtype == torch.float64 else weight.float()
    u, sigma, vt = torch.linalg.svd(wide.detach(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * vt[:rank]).to(weight.dtype)


@torch.no_grad()
def fill(new: nn.Module, layer: nn.Module) -> None:
    """Give a layer of low rank the factors and the biases of the layer whose place it takes."""
    if isinstance(new, LowRankConv2d):
        assert isinstance(layer, nn.Conv2d)
        _fill_conv(new, layer)
    elif isinstance(new, LowRankLSTM):
        assert isinstance(layer, nn.LSTM)
        _fill_lstm(new, layer)
    elif isinstance(new, LowRankAttention):
        assert isinstance(layer, nn.MultiheadAttention)
        _fill_attention(new, layer)
    else:
        assert isinstance(new, LowRankLinear)
        assert isinstance(layer, nn.Linear)
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
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    names = [f"_l{number}{s}" for number in range(layer.num_layers) for s in suffixes]
    for cell, name in zip(new.cells, names, strict=True):
        for kind in ("ih", "hh"):
            gates = getattr(layer, f"weight_{kind}{name}").chunk(GATES)
            pieces = [balanced(gate, new.rank) for gate in gates]
            getattr(cell, f"second_{kind}").copy_(torch.stack([s for s, _ in pieces]))
            getattr(cell, f"first_{kind}").copy_(torch.stack([f for _, f in pieces]))
        if layer.bias:
            both = getattr(layer, f"bias_ih{name}") + getattr(layer, f"bias_hh{name}")
            cell.bias.copy_(both.view(GATES, -1))  # type: ignore[operator]


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


def warm_start(
    model: nn.Module, optimizer: Optimizer, rank_ratio: float = 0.25, **how: Any
) -> tuple[Factorization, Optimizer]:
    """Go on with a trained model at low rank: Pufferfish's switch after a warm-up of full rank.

    Factors are the balanced truncated SVD of the weights, so that their products are the best
    approximations of that rank; everything else of the model stays, running statistics of
    BatchNorm included. The optimizer is a new one of the same class and settings, group by group;
    its momentum is dropped, as published, since it belongs to matrices that are gone.

    Args:
        model: trained; changed in place.
        optimizer: of its parameters; schedulers must be made anew, on the optimizer returned.
        rank_ratio: as `factorize` has it.
        **how: as `factorize` has it.

    Returns:
        The factorization and the new optimizer.

    Raises:
        ValueError: as `factorize` does.

    References:
        Wang et al., "Pufferfish", MLSys 2021.
    """
    found = factorize(model, rank_ratio, warm=True, **how)
    return found, rebuilt(optimizer, found)


def rebuilt(optimizer: Optimizer, found: Factorization) -> Optimizer:
    """An optimizer of the same class and settings for the parameters there are now."""
    groups = []
    for group in optimizer.param_groups:
        fresh: dict[int, nn.Parameter] = {}
        for parameter in group["params"]:
            for successor in found.replaced.get(parameter, (parameter,)):
                fresh[id(successor)] = successor
        groups.append({**group, "params": list(fresh.values())})
    return type(optimizer)(groups, **optimizer.defaults)
