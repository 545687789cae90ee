"""Layers whose matrices are products of two factors, W = U Vᵀ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LowRankLinear(nn.Module):
    r"""A linear layer of rank r: :math:`y = U (V^T x) + b`, of r (m + n) + m parameters.

    Args:
        in_features: n, the last dimension of the input.
        out_features: m, the last dimension of the output.
        rank: r.
        bias: Whether the layer has a b.
        device: Of the factors, as in torch.nn.Linear.
        dtype: Of the factors.

    Attributes:
        first: Vᵀ, without a bias.
        second: U, with b.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.second = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def weight(self) -> Tensor:
        """U Vᵀ, `[m, n]`."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second factor."""
        return self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n]` to `[..., m]`."""
        y: Tensor = self.second(self.first(x))
        return y

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankAttention(nn.Module):
    """Multi-head attention whose four projections have rank r, heads concatenated: 8 D r.

    Args:
        attention: The layer to replace; its weights are not used.
        rank: r.
    """

    def __init__(self, attention: nn.MultiheadAttention, rank: int) -> None:
        super().__init__()
        where: dict[str, Any] = {
            "device": attention.out_proj.weight.device,
            "dtype": attention.out_proj.weight.dtype,
        }
        size, bias = attention.embed_dim, attention.in_proj_bias is not None
        self.embed_dim, self.num_heads, self.rank = size, attention.num_heads, rank
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        # layers of transformers look at these before they take a path of their own
        self._qkv_same_embed_dim, self.in_proj_bias = False, None
        self.query = LowRankLinear(size, size, rank, bias=bias, **where)
        self.key = LowRankLinear(attention.kdim, size, rank, bias=bias, **where)
        self.value = LowRankLinear(attention.vdim, size, rank, bias=bias, **where)
        self.out_proj = LowRankLinear(size, size, rank, bias=bias, **where)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`, of batches or of one sequence."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (each.unsqueeze(0) for each in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        q, k, v = (
            self._heads(project(each))
            for project, each in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        scores = scores + self._mask(scores, key_padding_mask, attn_mask)
        weights = scores.softmax(-1)
        mixed = functional.dropout(weights, self.dropout, self.training) @ v
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            out, weights = out.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights if need_weights else None

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, heads, T, D/heads]`."""
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def _mask(self, scores: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor:
        """What is added to the scores, which broadcasts to `[B, heads, T, S]`."""
        added = scores.new_zeros(())
        if mask is not None:
            heads = (-1, self.num_heads, *mask.shape[1:])
            mask = mask.view(heads) if mask.dim() == 3 else mask
            added = added + _as_scores(mask, scores)
        if padding is not None:
            added = added + _as_scores(padding, scores)[:, None, None, :]
        return added


def _as_scores(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
