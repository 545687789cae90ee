"""An LSTM whose matrices are products of two factors, gate by gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradstats.lowrank.rules import GATES

Hidden = tuple[Tensor, Tensor]


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

    def named_cells(self) -> Iterator[tuple[str, LowRankCell]]:
        """The cells, by the end of torch's names for their parameters: `_l0_reverse`."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        names = [f"_l{number}{end}" for number in range(self.num_layers) for end in suffixes]
        for name, cell in zip(names, self.cells, strict=True):
            assert isinstance(cell, LowRankCell)
            yield name, cell

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
