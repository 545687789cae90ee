from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Collective, Compressor, Contract, State, Step
from gradstats.compressors.payloads import Payload
from gradstats.compressors.rng import Rng


@dataclass(eq=False)
class Residual:
    """What was not sent yet, and the state of the compressor inside. Consumed by each call.

    Attributes:
        residual: shaped as the gradient.
        inner: state of the wrapped compressor.
    """

    residual: Tensor
    inner: State

    def clone(self) -> Residual:
        """A copy that later calls leave alone."""
        return Residual(self.residual.clone(), copy.deepcopy(self.inner))


@dataclass(frozen=True)
class ErrorFeedback(Compressor):
    """What is not sent now is added to the next gradient.

    Old residual + gradient = sent + new residual, by construction.

    Args:
        compressor: any compressor; feedback is always outermost.

    References:
        Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019.
    """

    compressor: Compressor
    name = "ef"

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ValueError(f"compressor must be a compressor, got {self.compressor!r}")
        if isinstance(self.compressor, ErrorFeedback):
            # two memories of the same error would send it twice
            raise ValueError(f"compressor must not have feedback inside, got {self.compressor}")
        super().__post_init__()

    @property
    def contract(self) -> Contract:  # type: ignore[override]
        """That of the compressor inside, with a memory, and no promise for a single step."""
        inner = self.compressor.contract
        return Contract(
            inner.collective,
            has_memory=True,
            random=inner.random,
            rounds=inner.rounds,
            needs=inner.needs,
        )

    @property
    def ratio_asked(self) -> float | None:
        """That of the compressor inside."""
        return self.compressor.ratio_asked

    def target_count(self, numel: int) -> int:
        """That of the compressor inside, whose parts may have targets of their own."""
        return self.compressor.target_count(numel)

    def init(self, grad: Tensor) -> Residual:
        """No residual."""
        residual = grad.detach().new_zeros(grad.shape)
        return Residual(residual, self.compressor.init(grad))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode residual + gradient; the residual is updated in place."""
        compensated = state.residual.add_(grad.detach())
        payload, inner = self.compressor.encode(compensated, state.inner, rng)
        payload.remove_from(compensated.view(-1))
        return payload, Residual(compensated, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`, over all workers: the residual loses what the exchange counts as sent."""
        compensated = state.residual.add_(grad.detach())
        step = yield from self.compressor.exchange(compensated, state.inner, rng)
        step.sent.remove_from(compensated.view(-1))
        return Step(step.update, step.sent, Residual(compensated, step.state))
