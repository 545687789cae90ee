from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import Collective, State, Step, alone, fused
from gradstats.payloads.base import Bundle
from gradstats.ratios import Part
from gradstats.rng import Rng


@dataclass(frozen=True)
class PerParameter(Compressor):
    """One compressor for each parameter of a flat gradient, each with its own state and threshold.

    Args:
        compressor: used for every part that is not dense.
        parts: in the order of the vector.
    """

    compressor: Compressor
    parts: tuple[Part, ...]
    name = "per-parameter"

    @property
    def contract(self) -> Contract:
        """That of the compressor inside, which holds for the whole if it holds for the parts."""
        return replace(self.compressor.contract, delta=None, bits=None)

    @property
    def ratio_asked(self) -> float | None:
        """That of the compressor inside."""
        return self.compressor.ratio_asked

    @property
    def spec(self) -> str:
        """That of the compressor inside: granularity is a setting of its own."""
        return self.compressor.spec

    def target_count(self, numel: int) -> int:
        """The sum of the parts' targets, dense parts whole."""
        return sum(
            part.numel if part.dense else self.compressor.target_count(part.numel)
            for part in self.parts
        )

    def init(self, grad: Tensor) -> State:
        """One state a part."""
        return [
            None if part.dense and not self.compressor.steers else self.compressor.init(view)
            for part, view in self._split(grad)
        ]

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Bundle, State]:
        """One payload a part."""
        payloads, states = [], []
        for (part, view), inner in zip(self._split(grad), state, strict=True):
            if part.dense:
                step = alone(self.compressor.dense(view, inner))
                payload, inner = step.sent, step.state
            else:
                payload, inner = self.compressor.encode(view, inner, self._own(rng, part))
            payloads.append(payload)
            states.append(inner)
        return Bundle(tuple(payloads)), states

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Those of the parts, in lock-step."""
        steps = yield from fused(
            [
                self.compressor.dense(view, inner)
                if part.dense
                else self.compressor.exchange(view, inner, self._own(rng, part))
                for (part, view), inner in zip(self._split(grad), state, strict=True)
            ]
        )
        update = torch.cat([step.update.reshape(-1) for step in steps]).view(grad.shape)
        sent = Bundle(tuple(step.sent for step in steps))
        return Step(update, sent, [step.state for step in steps])

    def _own(self, rng: Rng | None, part: Part) -> Rng | None:
        return rng and replace(rng, parameter=part.name)

    def _split(self, grad: Tensor) -> list[tuple[Part, Tensor]]:
        views = torch.split(grad.reshape(-1), [part.numel for part in self.parts])
        return [
            (part, view.view(part.shape) if part.shape else view)
            for part, view in zip(self.parts, views, strict=True)
        ]
