"""One compressor per parameter of a flat gradient, in which small parameters are sent dense."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import Collective, State, Step, alone, fused, several
from gradstats.compressors.wrappers.memory import Memory
from gradstats.payloads.bundle import Bundle
from gradstats.ratios import MIN_DIMS, MIN_NUMEL, DenseRule, Part
from gradstats.rng import Rng


@dataclass(frozen=True)
class PerParameter(Compressor):
    """One compressor for each parameter of a flat gradient, each with its own state and threshold.

    Written `per-parameter(topk(0.01))` it has no parts yet: a replay gives it the parameters of
    its run, the communication hook those of its buckets.

    Args:
        compressor: Used for every part that is not dense.
        parts: Parts of the gradient, in the order of the vector.
        min_numel: Number of elements from which a parameter is compressed, see `DenseRule`.
        min_dims: Number of dimensions from which a parameter is compressed.

    Raises:
        ValueError: A setting is out of range, or the compressor is per parameter itself.

    Example:
        >>> from gradstats.compressors import TopK
        >>> print(PerParameter(TopK(0.01), min_numel=512))
        per-parameter(topk(0.01), min_numel=512)
    """

    compressor: Compressor
    parts: tuple[Part, ...] = ()
    min_numel: int = MIN_NUMEL
    min_dims: int = MIN_DIMS
    name = "per-parameter"

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor) or isinstance(
            self.compressor, PerParameter
        ):
            rule = "compressor must be a compressor that is not per parameter itself"
            raise ValueError(f"{rule}, got {self.compressor!s}")
        if not isinstance(self.parts, tuple):
            raise ValueError(f"parts must be a tuple of Part, got {self.parts!r}")
        _ = self.rule
        super().__post_init__()

    @property
    def rule(self) -> DenseRule:
        """Which parameters are sent dense."""
        return DenseRule(self.min_numel, self.min_dims)

    @property
    def contract(self) -> Contract:
        """The contract of the compressor inside; what holds for each part holds for the whole."""
        inside = self.compressor.contract
        compressed = sum(not part.dense for part in self.parts)
        reads = None if inside.host_reads is None else inside.host_reads * compressed
        return replace(inside, delta=None, bits=None, host_reads=reads)

    @property
    def ratio_asked(self) -> float | None:
        """The target ratio of the compressor inside."""
        return self.compressor.ratio_asked

    @property
    def spec(self) -> str:
        """The compressor in the grammar, without the parts."""
        settings = {"min_numel": MIN_NUMEL, "min_dims": MIN_DIMS}
        other = {name: getattr(self, name) for name in settings}
        written = [f"{name}={other[name]}" for name in settings if other[name] != settings[name]]
        return f"{self.name}({', '.join([self.compressor.spec, *written])})"

    def target_count(self, numel: int) -> int:
        """The sum of the parts' targets, dense parts whole."""
        return sum(
            part.numel if part.dense else self.compressor.target_count(part.numel)
            for part in self.parts
        )

    def init(self, grad: Tensor) -> State:
        """One state per part."""
        return self._init(grad, self.compressor.init)

    def init_under_memory(self, grad: Tensor) -> State:
        """One state per part."""
        return self._init(grad, self.compressor.init_under_memory)

    def _init(self, grad: Tensor, init: Callable[[Tensor], State]) -> State:
        return [
            None if part.dense and not self.compressor.steers else init(view)
            for part, view in self._split(grad)
        ]

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """Reshard the states of each part; parts that are sent dense may have none."""
        of_parts = ([state[index] for state in states] for index in range(len(self.parts)))
        return [
            None if each[0] is None else self.compressor.resharded(each, worker, workers)
            for each in of_parts
        ]

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Bundle, State]:
        """One payload per part."""
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
        """The exchanges of the parts, in lock-step.

        Parts without an element that would go dense ask for nothing: most parameters of a few
        tracked elements have none.
        """
        views = self._split(grad)
        parts = [(*views[index], state[index]) for index in self._exchanging]
        steps = yield from self._exchanged(parts, rng)
        states = list(state)
        for index, step in zip(self._exchanging, steps, strict=True):
            states[index] = step.state
        update = torch.cat([step.update.reshape(-1) for step in steps]).view(grad.shape)
        return Step(update, Bundle(tuple(step.sent for step in steps)), states)

    @cached_property
    def _exchanging(self) -> list[int]:
        """Indices of the parts that exchange something; all where no part has an element."""
        idle = [part.dense and not part.numel for part in self.parts]
        if self.compressor.steers or all(idle):
            return list(range(len(idle)))
        return [index for index, none in enumerate(idle) if not none]

    def _exchanged(
        self, parts: Sequence[tuple[Part, Tensor, State]], rng: Rng | None
    ) -> Generator[Collective, Any, list[Step]]:
        """The steps of some parts, in their order."""
        large = [each for each in parts if not each[0].dense]
        rngs = [self._own(rng, part) for part, _, _ in large]
        views, states = [view for _, view, _ in large], [inner for *_, inner in large]
        dense = [self.compressor.dense(view, inner) for part, view, inner in parts if part.dense]
        compressed = self.compressor.exchange_all(views, states, rngs) if large else several([])
        some, others = map(iter, (yield from fused([compressed, several(dense)])))
        return [next(others if part.dense else some) for part, _, _ in parts]

    def _own(self, rng: Rng | None, part: Part) -> Rng | None:
        return rng and replace(rng, parameter=part.name)

    def _split(self, grad: Tensor) -> list[tuple[Part, Tensor]]:
        numels = [part.numel for part in self.parts]
        if sum(numels) != grad.numel():
            rule = f"parts must add up to the {grad.numel()} elements of the gradient"
            raise ValueError(f"{rule}, got {len(numels)} parts of {sum(numels)} for {self}")
        views = torch.split(grad.reshape(-1), numels)
        return [
            (part, view.view(part.shape) if part.shape else view)
            for part, view in zip(self.parts, views, strict=True)
        ]


def without_parts(compressor: Compressor) -> tuple[Compressor, DenseRule | None]:
    """The compressor out of its `per-parameter`, and the rule it was written with, None without.

    A memory stays outermost: `ef(per-parameter(topk(0.01)))` gives `ef(topk(0.01))`.
    """
    if isinstance(compressor, PerParameter):
        return compressor.compressor, compressor.rule
    if not isinstance(compressor, Memory):
        return compressor, None
    inner, rule = without_parts(compressor.compressor)
    return (compressor if rule is None else _around(compressor, inner)), rule


def in_parts(
    compressor: Compressor, parts: tuple[Part, ...], rule: DenseRule | None = None
) -> Compressor:
    """The method on every part; a memory stays outermost."""
    if isinstance(compressor, Memory):
        return _around(compressor, in_parts(compressor.compressor, parts, rule))
    rule = rule or DenseRule()
    return PerParameter(compressor, parts, rule.min_numel, rule.min_dims)


def _around(memory: Memory, compressor: Compressor) -> Compressor:
    inside: dict[str, Any] = {"compressor": compressor}
    return replace(memory, **inside)  # type: ignore[type-var]
