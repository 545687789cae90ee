"""Layers whose matrices are products of two factors, W = U Vᵀ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GATES = 4
Hidden = tuple[Tensor, Tensor]


class LowRankLinear(nn.Module):
    r"""A linear layer of rank r: :math:`y = U (V^T x) + b`, of r (m + n) + m parameters.

    Args:
        in_features: n.
        out_features: m.
        rank: r.
        bias: whether there is a b.
        **where: device and dtype.

    Attributes:
        first: Vᵀ, without a bias.
        second: U, with b.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, bias: bool = True, **where: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = nn.Linear(in_features, rank, bias=False, **where)
        self.second = nn.Linear(rank, out_features, bias=bias, **where)

    @property
    def weight(self) -> Tensor:
        """U Vᵀ, `[m, n]`."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the second factor."""
        return self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n]` to `[..., m]`."""
        found: Tensor = self.second(self.first(x))
        return found

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankConv2d(nn.Module):
    """A convolution to r channels a group, and one of 1 × 1 from them to the output's.

    The first carries stride, padding, dilation and groups, the second the bias. There is no
    activation in between; a normalisation is a variant of its own.

    Args:
        conv: whose place it takes; its weights are not used.
        rank: r, of each group.
        extra_norm: put a BatchNorm2d between the two.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.
    """

    def __init__(self, conv: nn.Conv2d, rank: int, *, extra_norm: bool = False) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        between = conv.groups * rank
        self.rank = rank
        self.first = nn.Conv2d(
            conv.in_channels,
            between,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            **where,
        )
        self.norm = nn.BatchNorm2d(between, **where) if extra_norm else nn.Identity()
        self.second = nn.Conv2d(
            between, conv.out_channels, 1, groups=conv.groups, bias=conv.bias is not None, **where
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        found: Tensor = self.second(self.norm(self.first(x)))
        return found

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankLSTM(nn.Module):
    r"""An LSTM whose eight matrices a layer and direction have rank r, with one bias a gate.

    .. math:: g_t = U_i (V_i^T x_t) + U_h (V_h^T h_{t-1}) + b, \quad
              c_t = \sigma(f) c_{t-1} + \sigma(i) \tanh(g), \quad h_t = \sigma(o) \tanh(c_t)

    4 d r + 12 h r + 4 h parameters a layer. The steps are a loop in Python; the products with x
    are made for all steps at once.

    Args:
        lstm: whose place it takes; its weights are not used.
        rank: r.

    References:
        Wang et al., "Pufferfish", MLSys 2021.
    """

    def __init__(self, lstm: nn.LSTM, rank: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.rank = lstm.input_size, lstm.hidden_size, rank
        self.num_layers, self.dropout = lstm.num_layers, lstm.dropout
        self.batch_first, self.bidirectional = lstm.batch_first, lstm.bidirectional
        where: dict[str, Any] = {
            "device": lstm.weight_ih_l0.device,
            "dtype": lstm.weight_ih_l0.dtype,
        }
        directions = 2 if lstm.bidirectional else 1
        self.cells = nn.ModuleList(
            LowRankCell(
                lstm.input_size if layer == 0 else directions * lstm.hidden_size,
                lstm.hidden_size,
                rank,
                bias=lstm.bias,
                **where,
            )
            for layer in range(lstm.num_layers)
            for _ in range(directions)
        )

    def flatten_parameters(self) -> None:
        """Nothing to do; training loops call it."""

    def forward(self, x: Tensor, hx: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """As `nn.LSTM`, without packed sequences.

        Raises:
            TypeError: a packed sequence.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"input must be a tensor, pad sequences, got {type(x).__name__}")
        batched = x.dim() == 3
        x = x if batched else x.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        h, c = self._start(x) if hx is None else hx
        if hx is not None and not batched:
            h, c = h.unsqueeze(1), c.unsqueeze(1)
        x, ends = self._layers(x, h, c)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        h, c = (torch.stack(each) for each in zip(*ends, strict=True))
        return (x, (h, c)) if batched else (x.squeeze(1), (h.squeeze(1), c.squeeze(1)))

    def _start(self, x: Tensor) -> Hidden:
        zeros = x.new_zeros(len(self.cells), x.shape[1], self.hidden_size)
        return zeros, zeros

    def _layers(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, list[Hidden]]:
        directions = 2 if self.bidirectional else 1
        ends: list[Hidden] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                seen = x.flip(0) if direction else x
                out, end = self.cells[place](seen, (h[place], c[place]))
                outputs.append(out.flip(0) if direction else out)
                ends.append(end)
            x = torch.cat(outputs, -1)
            if layer + 1 < self.num_layers:
                x = functional.dropout(x, self.dropout, self.training)
        return x, ends

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankCell(nn.Module):
    """One layer and direction of a `LowRankLSTM`.

    Attributes:
        first_ih: Vᵀ of the four gates for the input, `[4, r, d]`.
        second_ih: U of the four gates, `[4, h, r]`.
        first_hh: Vᵀ for the state, `[4, r, h]`.
        second_hh: U for the state, `[4, h, r]`.
        bias: `[4, h]`, None without one.
    """

    bias: nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, rank: int, *, bias: bool, **where: Any
    ) -> None:
        super().__init__()
        self.first_ih = nn.Parameter(torch.empty(GATES, rank, input_size, **where))
        self.second_ih = nn.Parameter(torch.empty(GATES, hidden_size, rank, **where))
        self.first_hh = nn.Parameter(torch.empty(GATES, rank, hidden_size, **where))
        self.second_hh = nn.Parameter(torch.empty(GATES, hidden_size, rank, **where))
        kept = nn.Parameter(torch.empty(GATES, hidden_size, **where)) if bias else None
        self.register_parameter("bias", kept)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform up to the square root of 1 over the elements that are summed."""
        for parameter in self.parameters():
            limit = parameter.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -limit, limit)

    def forward(self, x: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        """`[T, B, d]` to `[T, B, h]`."""
        gates = _gates(x, self.first_ih, self.second_ih)
        if self.bias is not None:
            gates = gates + self.bias
        h, c = state
        outputs = []
        for now in gates:
            i, f, g, o = (now + _gates(h, self.first_hh, self.second_hh)).unbind(-2)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)


def _gates(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`[..., d]` to `[..., 4, h]`."""
    gates, rank, _ = first.shape
    inner = functional.linear(x, first.flatten(0, 1))
    inner = inner.view(*inner.shape[:-1], gates, rank)
    return torch.einsum("...gr,ghr->...gh", inner, second)


class LowRankAttention(nn.Module):
    """Multi-head attention whose four projections have rank r, heads concatenated: 8 D r.

    Args:
        attention: whose place it takes; its weights are not used.
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
        # layers of transformers look here before they take a path of their own
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
        """As `nn.MultiheadAttention`, of batches."""
        if not self.batch_first:
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
        out = out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(1) if average_attn_weights else weights

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, heads, T, D/heads]`."""
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def _mask(self, scores: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor:
        """What is added to the scores, which broadcasts to `[B, heads, T, S]`."""
        found = scores.new_zeros(())
        if mask is not None:
            heads = (-1, self.num_heads, *mask.shape[1:])
            mask = mask.view(heads) if mask.dim() == 3 else mask
            found = found + _added(mask, scores)
        if padding is not None:
            found = found + _added(padding, scores)[:, None, None, :]
        return found


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
