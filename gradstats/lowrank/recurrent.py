"""LSTM and GRU layers whose matrices are products of two factors, gate by gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, ...]


class _LowRankCell(nn.Module):
    """One layer and direction of a recurrent layer.

    Attributes:
        first_ih: Vᵀ of the gates for the input, `[gates, r, d]`.
        second_ih: U of the gates, `[gates, h, r]`.
        first_hh: Vᵀ for the state, `[gates, r, h]`.
        second_hh: U for the state, `[gates, h, r]`.
    """

    gates: ClassVar[int]
    biases: ClassVar[tuple[str, ...]]

    def __init__(
        self, input_size: int, hidden_size: int, rank: int, *, bias: bool, **where: Any
    ) -> None:
        super().__init__()
        gates = self.gates
        self.first_ih = nn.Parameter(torch.empty(gates, rank, input_size, **where))
        self.second_ih = nn.Parameter(torch.empty(gates, hidden_size, rank, **where))
        self.first_hh = nn.Parameter(torch.empty(gates, rank, hidden_size, **where))
        self.second_hh = nn.Parameter(torch.empty(gates, hidden_size, rank, **where))
        for name in self.biases:
            kept = nn.Parameter(torch.empty(gates, hidden_size, **where)) if bias else None
            self.register_parameter(name, kept)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform up to the square root of 1 over the elements that are summed."""
        for parameter in self.parameters():
            limit = parameter.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -limit, limit)

    def of_input(self, x: Tensor) -> Tensor:
        """`[..., d]` to `[..., gates, h]`."""
        return _product(x, self.first_ih, self.second_ih)

    def of_state(self, h: Tensor) -> Tensor:
        """`[..., h]` to `[..., gates, h]`."""
        return _product(h, self.first_hh, self.second_hh)


class LowRankLSTMCell(_LowRankCell):
    """One layer and direction of a `LowRankLSTM`, with one bias per gate.

    Attributes:
        bias: `[4, h]`, None without one.
    """

    gates, biases = 4, ("bias",)
    bias: nn.Parameter | None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`[T, B, d]` to `[T, B, h]`."""
        gates = self.of_input(x)
        if self.bias is not None:
            gates = gates + self.bias
        h, c = state
        outputs = []
        for now in gates:
            i, f, g, o = (now + self.of_state(h)).unbind(-2)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class LowRankGRUCell(_LowRankCell):
    """One layer and direction of a `LowRankGRU`, with torch's two biases per gate.

    Attributes:
        bias_ih: `[3, h]`, None without one.
        bias_hh: `[3, h]`, None without one; that of the third gate is inside the reset gate.
    """

    gates, biases = 3, ("bias_ih", "bias_hh")
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def of_state(self, h: Tensor) -> Tensor:
        """`[..., h]` to `[..., gates, h]`, with the bias."""
        gates = super().of_state(h)
        return gates if self.bias_hh is None else gates + self.bias_hh

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`[T, B, d]` to `[T, B, h]`."""
        gates = self.of_input(x)
        if self.bias_ih is not None:
            gates = gates + self.bias_ih
        (h,) = state
        outputs = []
        for now in gates:
            of_input, of_state = now.unbind(-2), self.of_state(h).unbind(-2)
            reset = (of_input[0] + of_state[0]).sigmoid()
            update = (of_input[1] + of_state[1]).sigmoid()
            candidate = (of_input[2] + reset * of_state[2]).tanh()
            h = (1 - update) * candidate + update * h
            outputs.append(h)
        return torch.stack(outputs), (h,)


class _LowRankRecurrent(nn.Module):
    """What `LowRankLSTM` and `LowRankGRU` have in common."""

    _cell: ClassVar[type[_LowRankCell]]
    _states: ClassVar[int]

    def __init__(self, layer: nn.LSTM | nn.GRU, rank: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.rank = layer.input_size, layer.hidden_size, rank
        self.num_layers, self.dropout = layer.num_layers, layer.dropout
        self.batch_first, self.bidirectional = layer.batch_first, layer.bidirectional
        weight: Any = layer.weight_ih_l0
        directions = 2 if layer.bidirectional else 1
        self.cells = nn.ModuleList(
            self._cell(
                layer.input_size if number == 0 else directions * layer.hidden_size,
                layer.hidden_size,
                rank,
                bias=layer.bias,
                device=weight.device,
                dtype=weight.dtype,
            )
            for number in range(layer.num_layers)
            for _ in range(directions)
        )

    def named_cells(self) -> Iterator[tuple[str, _LowRankCell]]:
        """The cells, by the end of torch's names for their parameters: `_l0_reverse`."""
        for name, cell in zip(endings(self), self.cells, strict=True):
            assert isinstance(cell, _LowRankCell)
            yield name, cell

    def flatten_parameters(self) -> None:
        """Do nothing; training loops call it."""

    def _run(self, x: Tensor, start: State | None) -> tuple[Tensor, State]:
        """The outputs and the last states; both without a batch where x has none."""
        if not isinstance(x, Tensor):
            raise TypeError(f"input must be a tensor, pad sequences, got {type(x).__name__}")
        batched = x.dim() == 3
        x = x if batched else x.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        if start is None:
            zeros = x.new_zeros(len(self.cells), x.shape[1], self.hidden_size)
            start = (zeros,) * self._states
        elif not batched:
            start = tuple(each.unsqueeze(1) for each in start)
        x, ends = self._layers(x, start)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        states = tuple(torch.stack(each) for each in zip(*ends, strict=True))
        return (x, states) if batched else (x.squeeze(1), tuple(s.squeeze(1) for s in states))

    def _layers(self, x: Tensor, start: State) -> tuple[Tensor, list[State]]:
        directions = 2 if self.bidirectional else 1
        ends: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                seen = x.flip(0) if direction else x
                out, end = self.cells[index](seen, tuple(each[index] for each in start))
                outputs.append(out.flip(0) if direction else out)
                ends.append(end)
            x = torch.cat(outputs, -1)
            if layer + 1 < self.num_layers:
                x = functional.dropout(x, self.dropout, self.training)
        return x, ends

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankLSTM(_LowRankRecurrent):
    r"""An LSTM whose eight matrices per layer and direction have rank r, with one bias per gate.

    .. math:: g_t = U_i (V_i^T x_t) + U_h (V_h^T h_{t-1}) + b, \quad
              c_t = \sigma(f) c_{t-1} + \sigma(i) \tanh(g), \quad h_t = \sigma(o) \tanh(c_t)

    4 d r + 12 h r + 4 h parameters per layer. The steps are a loop in Python; the products with x
    are computed for all steps at once.

    Args:
        layer: The LSTM to replace; its weights are not used.
        rank: r.

    References:
        Wang et al., "Pufferfish", MLSys 2021.
    """

    _cell, _states = LowRankLSTMCell, 2

    def forward(self, x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """As `nn.LSTM`, without packed sequences.

        Raises:
            TypeError: A packed sequence.
        """
        return self._run(x, hx)


class LowRankGRU(_LowRankRecurrent):
    r"""A GRU whose six matrices per layer and direction have rank r, with torch's biases.

    .. math:: s_t = U_i (V_i^T x_t) + b_i, \quad q_t = U_h (V_h^T h_{t-1}) + b_h, \quad
              n = \tanh(s_n + \sigma(s_r + q_r) q_n), \quad
              h_t = (1 - \sigma(s_z + q_z)) n + \sigma(s_z + q_z) h_{t-1}

    3 d r + 9 h r + 6 h parameters per layer. Both biases of a gate stay, because the reset gate
    multiplies one of them. The steps are a loop in Python.

    Args:
        layer: The GRU to replace; its weights are not used.
        rank: r.
    """

    _cell, _states = LowRankGRUCell, 1

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `nn.GRU`, without packed sequences.

        Raises:
            TypeError: A packed sequence.
        """
        outputs, (h,) = self._run(x, None if hx is None else (hx,))
        return outputs, h


def endings(layer: Any) -> list[str]:
    """How torch's names for the parameters of a recurrent layer end, `_l0_reverse`."""
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    return [f"_l{number}{suffix}" for number in range(layer.num_layers) for suffix in suffixes]


def _product(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`[..., d]` to `[..., gates, h]`."""
    gates, rank, _ = first.shape
    inner = functional.linear(x, first.flatten(0, 1))
    inner = inner.view(*inner.shape[:-1], gates, rank)
    return torch.einsum("...gr,ghr->...gh", inner, second)
