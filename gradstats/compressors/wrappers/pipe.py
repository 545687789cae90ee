"""Compressors made of stages: `topk(0.01) | qsgd(bits=4) | golomb`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Bound, Contract, index_bits, summed
from gradstats.compressors.rounds import State
from gradstats.payloads.base import Payload
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.sparse import Scattered, Sparse
from gradstats.rng import Rng


class Stage(ABC):
    """Writes a payload in another way that decodes to the same."""

    name: str

    @abstractmethod
    def apply(self, payload: Payload) -> Payload:
        """Return the payload, written in this way.

        Raises:
            ValueError: the payload has nothing to be written so.
        """

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pipe(Compressor):
    """A compressor, and stages that each work on what the one before it leaves.

    A compressor as a later stage encodes the values that are kept, a code writes indices or
    symbols shorter. With a selector of contraction δ₁ and a value code of contraction δ₂ the whole
    has δ₁ δ₂, since what is not selected and what is lost of the selected are orthogonal:

    ‖x - C(x)‖² <= ‖x - S(x)‖² + (1 - δ₂)‖S(x)‖² <= (1 - δ₁ δ₂)‖x‖².

    An unbiased stage of variance ω₂ behind one of ω₁ is unbiased, of (1 + ω₁)(1 + ω₂) - 1.

    Args:
        stages: the first is a compressor; later compressors have no memory.
    """

    stages: tuple[Compressor | Stage, ...]

    @property
    def name(self) -> str:
        """The names of the stages with bars between them."""
        return " | ".join(stage.name for stage in self.stages)

    def __post_init__(self) -> None:
        parts: list[Compressor | Stage] = []
        for stage in self.stages:
            parts += stage.stages if isinstance(stage, Pipe) else (stage,)
        object.__setattr__(self, "stages", tuple(parts))
        if not isinstance(parts[0], Compressor):
            raise ValueError(f"the first stage must be a compressor, got {parts[0]}")
        for stage in parts[1:]:
            if not isinstance(stage, Compressor | Stage):
                raise ValueError(f"a stage must be a compressor or a code, got {stage!r}")
            if isinstance(stage, Compressor) and stage.contract.has_memory:
                raise ValueError(f"a later stage must have no memory, got {stage}")
        for stage in parts:
            if isinstance(stage, Compressor) and type(stage).exchange is not Compressor.exchange:
                rule = "a stage must send one message that is averaged"
                raise ValueError(f"{rule}, got {stage}, whose exchange is another")
        trial = torch.tensor([1.0, -2.0, 3.0, -4.0])  # refuses now what does not fit
        self.encode(trial, self.init(trial), Rng())

    @property
    def first(self) -> Compressor:
        """The first stage."""
        return self.stages[0]  # type: ignore[return-value]

    @property
    def value_codes(self) -> tuple[Compressor, ...]:
        """The compressors behind the first."""
        return tuple(stage for stage in self.stages[1:] if isinstance(stage, Compressor))

    @property
    def contract(self) -> Contract:
        """Contract that follows from those of the stages."""
        contract = self.first.contract
        for stage in self.value_codes:
            contract = _composed(contract, stage.contract)
        if contract.host_reads and any(getattr(each, "saves_read", False) for each in self.stages):
            contract = replace(contract, host_reads=contract.host_reads - 1)
        entropy_coded = any(getattr(stage, "of_symbols", False) for stage in self.stages[1:])
        if not entropy_coded:
            return contract
        return replace(contract, bits=None, host_reads=None, fixed_length=False)

    @property
    def spec(self) -> str:
        """The stages with bars between them."""
        return " | ".join(map(str, self.stages))

    @property
    def ratio_asked(self) -> float | None:
        """Target ratio of the first stage."""
        return self.first.ratio_asked

    def target_count(self, numel: int) -> int:
        """Target count of the first stage."""
        return self.first.target_count(numel)

    def init(self, grad: Tensor) -> State:
        """Return the state of the first stage."""
        return self.first.init(grad)

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """Reshard the state of the first stage."""
        return self.first.resharded(states, worker, workers)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Apply each stage to the payload of the one before it."""
        payload, state = self.first.encode(grad, state, rng)
        for index, stage in enumerate(self.stages[1:], start=1):
            if isinstance(stage, Stage):
                payload = stage.apply(payload)
            else:
                # numbers of its own, or quantising would depend on what was sampled
                own = rng and replace(rng, parameter=f"{rng.parameter}|{index}")
                payload = _recoded(payload, stage, own)
        return payload, state


def _recoded(payload: Payload, code: Compressor, rng: Rng | None) -> Payload:
    """The payload with its values encoded by a compressor."""
    if isinstance(payload, Scattered):
        return payload.with_kept(_recoded(payload.kept, code, rng))
    if isinstance(payload, Bundle):
        return Bundle(tuple(_recoded(part, code, rng) for part in payload.parts))
    values = payload.decode()
    return code.encode(values, code.init(values), rng)[0]


def innermost(payload: Payload, change: Callable[[Payload], Payload]) -> Payload:
    """The payload with what lies innermost in it changed."""
    if isinstance(payload, Scattered):
        return payload.with_kept(innermost(payload.kept, change))
    if isinstance(payload, Bundle):
        return Bundle(tuple(innermost(part, change) for part in payload.parts))
    return change(payload)


def _composed(first: Contract, second: Contract) -> Contract:
    return replace(
        first,
        collective="all_gather",
        delta=_product(first.delta, second.delta),
        omega=_variance(first.omega, second.omega),
        bits=_with_indices(second.bits) if first.bits else None,
        in_expectation=first.in_expectation or second.in_expectation,
        unbiased=first.unbiased and second.unbiased,
        wants_feedback=first.wants_feedback or second.wants_feedback,
        random=first.random or second.random,
        scaling=summed(first.scaling, second.scaling),
        host_reads=summed(first.host_reads, second.host_reads),
        fixed_length=False,
    )


def _product(first: Bound | None, second: Bound | None) -> Bound | None:
    if not first or not second:
        return None
    return Bound(
        f"{first.text} · {second.text}", lambda payload: first(payload) * second(_inner(payload))
    )


def _variance(first: Bound | None, second: Bound | None) -> Bound | None:
    if not first or not second:
        return None
    return Bound(
        f"(1 + {first.text})(1 + {second.text}) - 1",
        lambda payload: (1 + first(payload)) * (1 + second(_inner(payload))) - 1,
    )


def _with_indices(values: Bound | None) -> Bound | None:
    if not values:
        return None
    return Bound(
        f"index + {values.text}",
        lambda payload: _indices_bits(payload) + values(_inner(payload)),
    )


def _inner(payload: Payload) -> Payload:
    return payload.kept if isinstance(payload, Scattered) else payload


def _indices_bits(payload: Payload) -> float:
    return index_bits(payload) if isinstance(payload, Sparse) else 0.0
