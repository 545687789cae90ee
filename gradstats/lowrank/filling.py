"""Factors from the weights of a trained layer: the balanced truncated SVD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradstats.lowrank.kinds import Weight, kind_of


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
def fill(new: nn.Module, layer: nn.Module, rank: int, name: str = "") -> None:
    """Give a layer of low rank the factors and the biases of the layer that it replaces.

    Args:
        new: The layer of low rank.
        layer: The layer of full rank.
        rank: r of the factors.
        name: In the model, for the message.

    Raises:
        ValueError: A weight of the layer has a NaN or an infinity.
    """
    for which, parameter in layer.named_parameters():
        if parameter.dim() > 1 and not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            what = f"{name}.{which}" if name else which
            raise ValueError(f"cannot factorize {what}: {bad} of its elements are NaN or inf")
    for one in kind_of(layer).successions(new, layer):
        if isinstance(one, Weight):
            blocks = [block.flatten(1) for block in one.old.chunk(one.blocks)]
            factors = [balanced(block, rank) for block in blocks]
            _spread(torch.cat([second for second, _ in factors]), one.seconds)
            _spread(torch.cat([first for _, first in factors]), one.firsts)
        else:
            _spread(torch.stack(one.olds).sum(0), one.heirs)


def _spread(values: Tensor, targets: tuple[Tensor, ...]) -> None:
    """Copy equal parts of some values into tensors of other shapes."""
    for part, target in zip(values.chunk(len(targets)), targets, strict=True):
        target.copy_(part.view_as(target))
