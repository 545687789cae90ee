"""Contract: what a compressor promises; Bound: a number that follows from a payload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.index_codes import expected_bits
from gradstats.payloads.sparse import Scattered, Sparse

Number = TypeVar("Number", int, float)


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
    """What a compressor promises for every input. An absent entry promises nothing.

    Attributes:
        collective: how its payloads are combined over workers; "two_shot" is an all-to-all and an
            all-gather of the sums, "ring" n-1 hops and an all-gather of the sums.
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
        rounds: dependent rounds of communication on two workers. Only those of a ring depend on
            the number of workers: n rounds on n workers.
        update: what becomes of the payloads of all workers: their mean, or the majority of signs.
        needs: what else than the gradient it must be given: "matrix", "microbatch", "loss".
        scaling: C(2^k x) = 2^k C(x) but for this share of the largest element, as long as one
            scale for the vector and all that is sent are in range; None: it knows absolute sizes.
        host_reads: the most times that encoding one gradient, asking for the payload's length and
            decoding it read from the gradient's device, for which the host waits, on a single
            worker; a two-shot exchange or a ring encodes, and so reads, once per chunk. None: no
            limit, as of entropy codes, which run on the host.
        fixed_length: the bytes of a payload follow from the number and dtype of the elements, so
            that workers need not tell each other how many there are.
    """

    collective: Literal["all_reduce", "all_gather", "two_shot", "ring"]
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
    host_reads: int | None = None
    fixed_length: bool = False


# of anything that keeps the k̂ largest of d magnitudes exactly
KEPT_SHARE = Bound("k̂/d", lambda payload: payload.count / max(payload.numel, 1))
SPARSE_BITS = Bound("k̂ (b + index)", lambda payload: index_bits(payload) + value_bits(payload))
DENSE_BITS = Bound("b d", lambda payload: value_bits(payload))
SPARSIFIER = Contract("all_gather", delta=KEPT_SHARE, bits=SPARSE_BITS, wants_feedback=True)


def summed(first: Number | None, second: Number | None) -> Number | None:
    """The sum of what two codes promise; None where one of them promises nothing."""
    return None if first is None or second is None else first + second


def index_bits(payload: Sparse) -> float:
    """Bits of the indices of a sparse payload."""
    return expected_bits(payload.count, payload.numel, payload.index_code or "auto")


def value_bits(payload: Scattered | Dense) -> float:
    """Bits of the values of a payload."""
    return 8.0 * payload.values.nbytes
