from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import bucket_of, coded_bits, quantized
from gradstats.compressors.rounds import AllGather, AllReduce, Collective, State, Step
from gradstats.payloads.base import Dense
from gradstats.payloads.codebooks import Sign
from gradstats.payloads.quantized import Coded
from gradstats.rng import Rng


@dataclass(frozen=True)
class Signum(Compressor):
    r"""The sign of a momentum; the update is the sign of the sum of all workers' signs.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \quad
              \text{update} = \operatorname{sign} \sum_w \operatorname{sign} m_t^{(w)}

    Args:
        beta: β, in [0, 1); 0 is signSGD with majority vote.

    References:
        Bernstein et al., "signSGD with majority vote is communication efficient and fault
        tolerant", ICLR 2019.
    """

    steers = True

    beta: float = 0.9
    name = "signum"
    contract = Contract(
        "all_gather",
        bits=coded_bits("d"),
        has_memory=True,
        update="majority",
        host_reads=0,
        fixed_length=True,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta!r}")

    def init(self, grad: Tensor) -> Tensor:
        """Start at rest."""
        return grad.detach().new_zeros(grad.numel())

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Coded, State]:
        """Encode the signs of the momentum."""
        flat = self.flattened(grad)
        momentum = self._momentum(flat, state)
        bucket = bucket_of(0, flat.numel())
        whole = torch.where(momentum.isfinite().all(), 1.0, torch.nan).reshape(1)
        payload = quantized(momentum, Sign(), whole[: flat.numel()], bucket)
        return payload, torch.where(momentum.isfinite(), momentum, 0)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Take the majority of the signs, 0 for a tie."""
        payload, state = self.encode(grad, state, rng)
        votes = grad.new_zeros(grad.numel())
        for received in (yield AllGather(payload)):
            received.add_to(votes)
        return Step(_signs(votes).view(grad.shape), payload, state)

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """Take the same majority, from the sum of the signs."""
        momentum = self._momentum(self.flattened(grad), state)
        sent = Dense((torch.where(momentum > 0, 1.0, -1.0) + 0 * momentum).to(grad.dtype))
        votes = yield AllReduce(sent.values, "mean")
        after = torch.where(momentum.isfinite(), momentum, 0)
        return Step(_signs(votes).view(grad.shape), sent, after)

    def uncompressed(self, grad: Tensor, state: State) -> Tensor:
        """Return the sign of the momentum."""
        return _signs(self._momentum(grad.reshape(-1), state)).view(grad.shape)

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Tensor:
        """Continue from the mean momentum."""
        return torch.stack(list(states)).mean(0)

    def _momentum(self, flat: Tensor, state: Tensor) -> Tensor:
        momentum: Tensor = self.beta * state + (1 - self.beta) * flat
        return momentum


def _signs(values: Tensor) -> Tensor:
    """The signs, and NaN of what is not finite, of which torch's sign would be 0 or 1."""
    return values.sign() + 0 * values
