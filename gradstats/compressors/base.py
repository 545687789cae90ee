"""What a compressor is: a pure step from a gradient to messages, all state held by the caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import AllGather, AllReduce, Collective, State, Step
from gradstats.kernels.ranges import saturated
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.sparse import Masked
from gradstats.ratios import check_ratio, kept_count
from gradstats.rng import Rng


class Compressor(ABC):
    """A gradient compressor. Subclasses are frozen dataclasses whose fields are the settings.

    A method that sends one message writes `encode` alone; one that needs several rounds writes
    `exchange`. `encode` consumes the state that it takes, while `exchange` leaves it as it was,
    since the step may still be called off. `grad` is never written, and a payload owns its values.

    Attributes:
        steers: its memory is a part of the optimizer, as a momentum is: it must see every
            gradient, also those that are sent dense.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]
    steers: ClassVar[bool] = False

    def init(self, grad: Tensor) -> State:
        """The state before the first step, for gradients like `grad`."""
        return None

    @abstractmethod
    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode one gradient.

        Args:
            grad: of any shape; read only.
            state: from `init` or from the step before.
            rng: needed where the contract says random.

        Returns:
            The payload, and the state for the next step.
        """

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """The step over all workers: yields collectives, is sent their results, returns a Step."""
        payload, state = self.encode(grad, state, rng)
        payloads: list[Payload]
        if isinstance(payload, Dense | Masked) and payload.summable:
            mean = yield AllReduce(payload.values, "mean")
            payloads = [payload.with_values(mean)]
        else:
            payloads = yield AllGather(payload)
        return Step(_mean(payloads, grad), payload, state)

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """The step of a gradient that is sent as it is, such as that of a small parameter.

        Where the memory is a part of the optimizer (`steers`), it goes on here too.
        """
        sent = Dense(grad.detach().reshape(-1).clone())
        mean = yield AllReduce(sent.values, "mean")
        return Step(mean.view(grad.shape), sent, state)

    def uncompressed(self, grad: Tensor, state: State) -> Tensor:
        """What the optimizer would be given of this gradient alone; state stays as it is."""
        return grad

    def observe(self, state: State, loss: float) -> State:
        """The state once the loss of the coming step is known; of use where `needs` has "loss"."""
        return state

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """The state of one of `workers`, from those of all workers of another number.

        Raises:
            ValueError: it is not known what becomes of this compressor's memory.
        """
        if self.contract.has_memory:
            raise ValueError(f"the number of workers must stay, got another one for {self}")
        return states[0]

    def __or__(self, stage: object) -> Compressor:
        """What is left of this compressor's payload after another stage, see `pipe.Pipe`."""
        from gradstats.compressors.wrappers.pipe import Pipe  # which is a compressor itself

        return Pipe((self, stage))  # type: ignore[arg-type]

    @property
    def ratio_asked(self) -> float | None:
        """The target ratio k/d; None where the method has none."""
        return getattr(self, "ratio", None)

    def target_count(self, numel: int) -> int:
        """k, the elements that should be kept of `numel`; all of them where there is no ratio."""
        return numel if self.ratio_asked is None else kept_count(numel, self.ratio_asked)

    @property
    def spec(self) -> str:
        """The compressor in the grammar; `gradstats.compressor(spec)` makes it again."""
        arguments = [
            f"{value}" if i == 0 else f"{field.name}={value}"
            for i, field in enumerate(fields(self))  # type: ignore[arg-type]
            if not field.metadata.get("in_name")
            if getattr(self, field.name) != field.default
            for value in [_written(getattr(self, field.name))]
        ]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name

    def __str__(self) -> str:
        return self.spec

    def __post_init__(self) -> None:
        if self.ratio_asked is not None:
            check_ratio("ratio", self.ratio_asked)


def _written(value: object) -> str:
    # numpy's float64 is a float too, but writes itself as a call
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _mean(payloads: list[Payload], grad: Tensor) -> Tensor:
    """The mean of what payloads decode to, like `grad`: of 16 bits it is taken in float32."""
    wide = torch.float32 if grad.dtype.itemsize == 2 else grad.dtype
    mean = torch.zeros(grad.numel(), dtype=wide, device=grad.device)
    for received in payloads:
        received.add_to(mean, 1 / len(payloads))
    return saturated(mean, grad.dtype).view(grad.shape)


def needs_rng(compressor: Compressor, rng: Rng | None) -> Rng:
    """The rng, or ValueError: a random compressor was called without one."""
    if rng is None:
        raise ValueError(
            f"rng must be given to {compressor}, which draws random numbers, got None"
        )
    return rng
