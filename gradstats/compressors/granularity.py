from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor, Contract, State
from gradstats.compressors.none import NoCompression
from gradstats.compressors.payloads import Bundle
from gradstats.compressors.rng import Rng

MIN_NUMEL = 1024


@dataclass(frozen=True)
class Part:
    """A parameter's place in the flat gradient.

    Attributes:
        name: of the parameter.
        numel: elements in the vector.
        dense: sent as it is, because it is too small to be worth compressing.
    """

    name: str
    numel: int
    dense: bool = False


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
    def contract(self) -> Contract:  # type: ignore[override]
        """That of the compressor inside, which holds for the whole if it holds for the parts."""
        return replace(self.compressor.contract, collective="all_gather", delta=None)

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
        return sum(self._for(part).target_count(part.numel) for part in self.parts)

    def init(self, grad: Tensor) -> State:
        """One state a part."""
        return [self._for(part).init(view) for part, view in self._split(grad)]

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Bundle, State]:
        """One payload a part."""
        payloads, states = [], []
        for (part, view), inner in zip(self._split(grad), state, strict=True):
            own_rng = rng and replace(rng, parameter=part.name)
            payload, inner = self._for(part).encode(view, inner, own_rng)
            payloads.append(payload)
            states.append(inner)
        return Bundle(tuple(payloads)), states

    def _for(self, part: Part) -> Compressor:
        return NoCompression() if part.dense else self.compressor

    def _split(self, grad: Tensor) -> list[tuple[Part, Tensor]]:
        views = torch.split(grad.reshape(-1), [part.numel for part in self.parts])
        return list(zip(self.parts, views, strict=True))
