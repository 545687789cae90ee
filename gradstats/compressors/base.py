"""Compressor: a pure step from gradients to messages and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradstats.compressors.checks import check_gradient, check_sent
from gradstats.compressors.contracts import Contract
from gradstats.compressors.rounds import (
    AllGather,
    AllReduce,
    Collective,
    Exchanges,
    State,
    Step,
    Terms,
    several,
)
from gradstats.compressors.steps import PayloadMean, averaged
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.sparse import Masked
from gradstats.ratios import check_ratio, kept_count
from gradstats.rng import Rng


class Compressor(ABC):
    """A gradient compressor. Subclasses are frozen dataclasses whose fields are the settings.

    A compressor is a pure step: the caller holds all state. Authors write one of three forms:

    - `Stateless`: one message per gradient and no state. Write `message`.
    - `Compressor`: one message, and a state from step to step. Write `init` and `encode`.
    - `Joint`: the message depends on all workers. Write `exchange`.

    `encode` consumes the state that it gets. `exchange` leaves it unchanged, because the step may
    still be called off. `grad` is never written, and a payload owns its values.

    Attributes:
        steers: whether its memory is a part of the optimizer, as a momentum is. Such a memory must
            see every gradient, including those that are sent dense.
        batches: whether `exchange_all` does more than the exchanges one by one.
    """

    steers: ClassVar[bool] = False
    batches: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in the grammar; subclasses set a class attribute or define a property."""

    @property
    @abstractmethod
    def contract(self) -> Contract:
        """Promises for every input; subclasses set a class attribute or define a property."""

    @property
    def shows_nonfinite(self) -> bool:
        """Whether a NaN or inf in a gradient shows in the first all-reduce of its exchange.

        True of methods that ask for a product with the whole gradient, in the dtype of float32 and
        float64 gradients: nobody has to look for NaN and inf before.
        """
        return False

    @staticmethod
    def flattened(grad: Tensor) -> Tensor:
        """Return the elements of a gradient as a vector: `[d]`, contiguous, detached.

        Raises:
            TypeError: it is no dense tensor of floating-point numbers.
        """
        check_gradient(grad)
        flat = grad.detach()
        return flat if flat.dim() == 1 and flat.is_contiguous() else flat.reshape(-1).contiguous()

    def init(self, grad: Tensor) -> State:
        """Return the state before the first step, for gradients shaped as `grad`."""
        return None

    def init_under_memory(self, grad: Tensor) -> State:
        """Return the first state where a memory goes around this compressor.

        A method that makes errors on behalf of all workers, in what it sends after a sum, keeps
        these in its own state.
        """
        return self.init(grad)

    @abstractmethod
    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode one gradient.

        Args:
            grad: of any shape; read only.
            state: from `init` or from the step before.
            rng: random numbers; needed if the contract says `random=True`.

        Returns:
            The payload, and the state for the next step.
        """

    def encode_sum(
        self, terms: tuple[Tensor, Tensor], total: Tensor, state: State, rng: Rng | None = None
    ) -> tuple[Payload, State]:
        """Add two vectors, such as a residual and a gradient, and encode the sum.

        A selection overrides it to do both in one pass over memory.

        Args:
            terms: float32 or float64, contiguous, of one shape; read only.
            total: the sum is written to it: the first term itself, or memory of its own.
            state: as in `encode`.
            rng: as in `encode`.

        Returns:
            As `encode(total)`.
        """
        return self.encode(torch.add(*terms, out=total), state, rng)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Run this worker's part of one step, as a generator.

        It yields collectives, which the caller performs over all workers, and receives their
        results. All workers must yield the same kinds of collectives in the same order.

        Args:
            grad: this worker's gradient, of any shape; read only.
            state: this worker's state, from `init` or the step before; left unchanged.
            rng: random numbers; needed if the contract says `random=True`.

        Returns:
            A `Step`: the mean update for the optimizer, the payload that counts as sent, and the
            state for the next step.

        Raises:
            ValueError: the method draws random numbers, and `rng` is None.
        """
        payload, state = self.encode(grad, state, rng)
        return (yield from self._delivered(payload, grad, state))

    def exchange_sum(
        self, terms: tuple[Tensor, Tensor], total: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Run one step of a sum, as `exchange(total)` would; arguments as of `encode_sum`."""
        if type(self).exchange is not Compressor.exchange:
            return (yield from self.exchange(torch.add(*terms, out=total), state, rng))
        payload, state = self.encode_sum(terms, total, state, rng)
        return (yield from self._delivered(payload, total, state))

    def _delivered(
        self, payload: Payload, grad: Tensor, state: State
    ) -> Generator[Collective, Any, Step]:
        check_sent(payload, grad, self.name)
        payloads: list[Payload]
        if isinstance(payload, Dense | Masked) and payload.summable:
            mean = yield AllReduce(payload.values, "mean")
            payloads = [payload.with_values(mean)]
        else:
            payloads = yield AllGather(payload)
        mean = PayloadMean(tuple(payloads), grad.shape, grad.dtype, grad.device)
        return averaged(mean, payload, state)

    def exchange_all(
        self,
        grads: Sequence[Tensor],
        states: Sequence[State],
        rngs: Sequence[Rng | None],
        terms: Sequence[Terms] = (),
    ) -> Exchanges[list[Step]]:
        """Run one step of several gradients, as those of a bucket; for `fused`.

        Args:
            grads: as in `exchange`.
            states: as in `exchange`.
            rngs: as in `exchange`.
            terms: two vectors per gradient, such as a residual and a gradient, whose sum is first
                put into it, or None; a method that reads a gradient adds them while it reads.
        """
        for total, pair in zip(grads, terms, strict=False):
            if pair:
                torch.add(*pair, out=total)
        each = zip(grads, states, rngs, strict=True)
        return several([self.exchange(grad, state, rng) for grad, state, rng in each])

    def averages_in(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return the dtype of the mean where an element-wise mean is all that is done, else None.

        Args:
            dtype: of the gradients.
        """
        return None

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """Run the step of a gradient that is sent uncompressed, such as a small parameter's.

        A memory that is a part of the optimizer (`steers`) must be updated here too.
        """
        sent = Dense(self.flattened(grad).clone())
        mean = yield AllReduce(sent.values, "mean")
        return Step(mean.view(grad.shape), sent, state)

    def uncompressed(self, grad: Tensor, state: State) -> Tensor:
        """Return what the optimizer would get from this gradient on one worker, uncompressed.

        The state stays unchanged.
        """
        return grad

    def observe(self, state: State, loss: float) -> State:
        """Return the state once the loss of the next step is known, for `needs=("loss",)`."""
        return state

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """Return the state of one worker after the number of workers has changed.

        Args:
            states: of all workers before the change, in worker order.
            worker: index of the worker among the new ones.
            workers: new number of workers.

        Raises:
            ValueError: this compressor does not define what becomes of its memory.
        """
        if self.contract.has_memory:
            raise ValueError(f"the number of workers must stay, got another one for {self}")
        return states[0]

    def __or__(self, stage: object) -> Compressor:
        """Return a pipe of this compressor and another stage, see `Pipe`."""
        from gradstats.compressors.wrappers.pipe import Pipe  # which is a compressor itself

        return Pipe((self, stage))  # type: ignore[arg-type]

    @property
    def ratio_asked(self) -> float | None:
        """Target ratio k/d, or None if the method has no ratio."""
        return getattr(self, "ratio", None)

    def target_count(self, numel: int) -> int:
        """Number k of elements to keep of `numel`: all of them if the method has no ratio."""
        return numel if self.ratio_asked is None else kept_count(numel, self.ratio_asked)

    def with_ratio(self, ratio: float) -> Compressor:
        """Return the same method with another target ratio.

        Raises:
            ValueError: the method has no ratio of its own.
        """
        if getattr(self, "ratio", None) is None:
            raise ValueError(f"compressor must have a ratio, got {self}")
        settings: Any = {"ratio": ratio}
        return replace(self, **settings)  # type: ignore[type-var]

    @property
    def spec(self) -> str:
        """Text in the grammar, from which `gradstats.compressor(spec)` makes the same again.

        Raises:
            TypeError: the class is no dataclass, so that its settings are not known.
        """
        settings: Any = self
        if not is_dataclass(settings):
            rule = f"{type(self).__name__} must be a frozen dataclass"
            raise TypeError(f"{rule}: write @dataclass(frozen=True) above the class")
        arguments = [
            f"{value}" if i == 0 else f"{field.name}={value}"
            for i, field in enumerate(fields(settings))
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
