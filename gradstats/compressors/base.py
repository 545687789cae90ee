"""What a compressor is: a pure step from a gradient to messages, all state held by the caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gradstats.compressors.index_codes import expected_bits
from gradstats.compressors.payloads import Dense, Payload
from gradstats.compressors.rng import Rng
from gradstats.compressors.scattered import Masked, Scattered, Sparse
from gradstats.kernels.ranges import saturated
from gradstats.summary import check_ratio, kept_count

State = Any


@dataclass(frozen=True)
class Bound:
    """A number that follows from a payload, with the formula as it is written in tables."""

    text: str
    of: Callable[[Any], float]

    def __call__(self, payload: Payload) -> float:
        """The number for a payload."""
        return float(self.of(payload))


@dataclass(frozen=True)
class Contract:
    """What a compressor promises, for every input; what it does not say is not promised.

    Attributes:
        collective: how its payloads are combined over workers.
        delta: the contraction ‖x - C(x)‖² <= (1 - delta)‖x‖², a function of the payload.
        omega: the variance E‖C(x) - x‖² <= omega ‖x‖² of an unbiased method, a function of the
            payload.
        bits: of the payload beyond its header, a function of the payload; from d = 10⁵ its bytes
            are within 5 % of it.
        in_expectation: the contraction holds for the mean over the random numbers only.
        unbiased: E C(x) = x.
        wants_feedback: converges only with error feedback.
        has_memory: its state changes from step to step, so that it must see consecutive steps.
        random: reads its `rng`.
        rounds: dependent rounds of communication.
        update: what becomes of the payloads of all workers: their mean, or the majority of signs.
        needs: what else than the gradient it must be given: "matrix", "microbatch", "loss".
        scaling: C(2^k x) = 2^k C(x) but for this share of the largest element, as long as one
            scale for the vector and all that is sent are in range; None: it knows absolute sizes.
    """

    collective: Literal["all_reduce", "all_gather"]
    delta: Bound | None = None
    omega: Bound | None = None
    bits: Bound | None = None
    in_expectation: bool = False
    unbiased: bool = False
    wants_feedback: bool = False
    has_memory: bool = False
    random: bool = False
    rounds: int = 1
    update: Literal["mean", "majority"] = "mean"
    needs: tuple[str, ...] = ()
    scaling: float | None = 0.0


# of anything that keeps the k̂ largest of d magnitudes exactly
KEPT_SHARE = Bound("k̂/d", lambda payload: payload.count / max(payload.numel, 1))
SPARSE_BITS = Bound("k̂ (b + index)", lambda payload: _index_bits(payload) + _value_bits(payload))
DENSE_BITS = Bound("b d", lambda payload: _value_bits(payload))
SPARSIFIER = Contract("all_gather", delta=KEPT_SHARE, bits=SPARSE_BITS, wants_feedback=True)


def _index_bits(payload: Sparse) -> float:
    return expected_bits(payload.count, payload.numel, payload.index_code or "auto")


def _value_bits(payload: Scattered | Dense) -> float:
    return 8.0 * payload.values.nbytes


@dataclass(frozen=True)
class AllReduce:
    """Combine equal-shaped tensors of all workers element by element; the result is a tensor.

    Attributes:
        tensor: floating-point; integers in [0, levels) where there are levels.
        op: what is done; a mean of integers is float32.
        levels: of the integers of one worker; 0 for a floating-point tensor. Their sums over n
            workers travel in base n (levels - 1) + 1, so that they cannot overflow.
    """

    tensor: Tensor
    op: Literal["sum", "mean", "max"] = "sum"
    levels: int = 0


@dataclass(frozen=True)
class AllGather:
    """Give every worker the payloads of all, which may differ in length: a list, by worker."""

    payload: Payload


@dataclass(frozen=True)
class Broadcast:
    """Give every worker the payload of worker `root`; the result is that payload.

    Attributes:
        payload: of the root; None on the others, or anything.
        root: a worker.
    """

    payload: Payload | None
    root: int


Collective = AllReduce | AllGather | Broadcast


@dataclass(frozen=True)
class Step:
    """What an exchange leaves.

    Attributes:
        update: the mean over workers that the optimizer gets, shaped as the gradient.
        sent: what this worker's memory must count as delivered.
        state: for the next step.
    """

    update: Tensor
    sent: Payload
    state: State


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
        from gradstats.compressors.pipe import Pipe  # which is a compressor itself

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


def answer(request: Collective) -> Any:
    """The result of a collective of a worker that is alone."""
    if isinstance(request, AllReduce):
        mean_of_integers = request.levels and request.op == "mean"
        return request.tensor.float() if mean_of_integers else request.tensor.clone()
    return [request.payload] if isinstance(request, AllGather) else request.payload


def alone(exchange: Generator[Collective, Any, Step]) -> Step:
    """The step of a worker that has no other to exchange with."""
    result: Any = None
    while True:
        try:
            request = exchange.send(result)
        except StopIteration as end:
            step: Step = end.value
            return step
        result = answer(request)


def needs_rng(compressor: Compressor, rng: Rng | None) -> Rng:
    """The rng, or ValueError: a random compressor was called without one."""
    if rng is None:
        raise ValueError(
            f"rng must be given to {compressor}, which draws random numbers, got None"
        )
    return rng
