"""Two-shot exchange: encoded chunks to their owners, the sum there, encoded, back to all."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor, Joint, needs_rng
from gradstats.compressors.contracts import Bound, Contract, summed
from gradstats.compressors.rounds import (
    AllGather,
    AllToAll,
    Collective,
    ReduceScatter,
    State,
    Step,
)
from gradstats.compressors.wrappers.chunks import bounds, check_inside, chunks, named, wide
from gradstats.kernels.ranges import saturated
from gradstats.payloads.base import Bundle, Dense, Payload, left
from gradstats.rng import Rng


@dataclass(eq=False)
class Shots:
    """What a two-shot exchange keeps from step to step.

    Attributes:
        owned: what the second code of this worker has lost, where the worker was the owner: it
            counts as a share of the mean; shaped as the gradient. None without a memory around.
        first: states of the first code, one per chunk.
        second: state of the second code.
    """

    owned: Tensor | None
    first: tuple[State, ...] = ()
    second: State = None


@dataclass(frozen=True)
class TwoShot(Joint):
    r"""Averages encoded gradients at a quarter of a gather's bytes on eight workers.

    Worker r owns chunk r of the vector. With the codes C and C₂, worker w's gradient g_w and n
    workers:

    .. math:: m_r = \frac1n \sum_w D(C(g_w[r])), \qquad \hat g[r] = D_2(C_2(m_r)).

    The first sum over w runs in float32 (float64 for such gradients) at the owner, after an
    all-to-all; an all-gather gives every worker all chunks. One worker sends (n-1)/n (c + c₂)
    bytes, where c and c₂ are those of an encoded vector; a gather sends (n-1) c.

    For workers whose errors are uncorrelated and small, of relative squared size e, the squared
    error of the mean is 2e times what one code of the mean would have: twice that of a gather.

    A memory goes around, `ef(twoshot(c))`. It then keeps a residual on every worker, and here one
    of the second code at the owner, which is added to the next sum:

    .. math:: m_r = s_r + \frac1n \sum_w D(C(g_w[r])), \qquad s_r \leftarrow m_r - \hat g[r].

    So the sum of all updates, of the mean residual and of all s is the sum of the mean gradients.

    Args:
        compressor: any method that encodes a vector by itself, and has no memory of elements.
        second: for the sums; None: the same.

    References:
        All-to-all and all-gather as in 1-bit Adam (Tang et al., ICML 2021) and ZeRO++ (Wang et
        al., 2023); two memories as in DoubleSqueeze (Tang et al., ICML 2019).
    """

    compressor: Compressor
    second: Compressor | None = None
    name = "twoshot"

    def __post_init__(self) -> None:
        check_inside(self.name, "compressor", self.compressor)
        if self.second is not None:
            check_inside(self.name, "second", self.second)
        super().__post_init__()

    @property
    def _second(self) -> Compressor:
        return self.second or self.compressor

    @property
    def contract(self) -> Contract:
        """Contract of the first code; no bound holds for the sum's code too."""
        inside, after = self.compressor.contract, self._second.contract
        return replace(
            inside,
            collective="two_shot",
            delta=None,
            omega=None,
            bits=_bits_of_parts(inside.bits),
            in_expectation=False,
            unbiased=inside.unbiased and after.unbiased,
            random=inside.random or after.random,
            wants_feedback=inside.wants_feedback or after.wants_feedback,
            rounds=2,
            scaling=summed(inside.scaling, after.scaling),
            host_reads=summed(inside.host_reads, after.host_reads),
        )

    @property
    def ratio_asked(self) -> float | None:
        """Target ratio of the first code."""
        return self.compressor.ratio_asked

    def target_count(self, numel: int) -> int:
        """Target count of the first code."""
        return self.compressor.target_count(numel)

    def with_ratio(self, ratio: float) -> Compressor:
        """Return the same with another target ratio of the first code."""
        return replace(self, compressor=self.compressor.with_ratio(ratio))

    def init(self, grad: Tensor) -> Shots:
        """Start without a residual: nobody around would know of it."""
        return Shots(None)

    def init_under_memory(self, grad: Tensor) -> Shots:
        """Start with a residual of what the second code loses."""
        return Shots(torch.zeros(grad.shape, dtype=wide(grad.dtype), device=grad.device))

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Send encoded chunks to their owners, and the encoded mean of the own chunk to all."""
        rng = needs_rng(self, rng) if self.contract.random else rng or Rng()
        flat, owned = self.flattened(grad), state.owned
        parts = chunks(flat.numel(), rng.workers)
        own = parts[rng.worker]
        if owned is not None:
            flat = _with_left_elsewhere(flat, owned.view(-1), own, rng.workers)
        payloads, first = self._first_shot([flat[part] for part in parts], state.first, rng)
        mean = yield from _mean_at_owner(payloads, flat[own], rng.worker)
        if owned is not None:
            mean = mean + owned.view(-1)[own]
        sent, second = self._second_shot(saturated(mean, grad.dtype), state.second, rng)
        fixed = self.second is None and self.contract.fixed_length
        received: list[Payload] = yield AllGather(sent, tuple(payloads) if fixed else ())
        decoded = torch.cat([payload.decode().to(mean.dtype) for payload in received])
        update = saturated(decoded, grad.dtype)
        if owned is not None:
            owned = owned.clone()
            kept = left(mean.double(), update[own].double())
            owned.view(-1)[own] = saturated(kept, owned.dtype)
        sent_by_worker = Bundle(tuple(payloads))
        return Step(update.view(grad.shape), sent_by_worker, Shots(owned, first, second))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Shots:
        """Give the sums' residuals to the new owners; states of codes are those of worker 0."""
        first = states[0]
        if first.owned is None:
            return Shots(None, (), first.second)
        total = torch.stack([state.owned for state in states]).sum(dim=0)
        start, end = bounds(total.numel(), workers)[worker : worker + 2]
        owned = torch.zeros_like(total)
        owned.view(-1)[start:end] = total.view(-1)[start:end]
        return Shots(owned, (), first.second)

    def _first_shot(
        self, chunks: Sequence[Tensor], states: tuple[State, ...], rng: Rng
    ) -> tuple[list[Payload], tuple[State, ...]]:
        """A payload and a state per chunk."""
        if len(states) != len(chunks):
            states = tuple(map(self.compressor.init, chunks))
        encoded = [
            self.compressor.encode(chunk, copy.deepcopy(state), named(rng, f"chunk {index}"))
            for index, (chunk, state) in enumerate(zip(chunks, states, strict=True))
        ]
        return [payload for payload, _ in encoded], tuple(state for _, state in encoded)

    def _second_shot(self, mean: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """The payload of the own chunk's mean, and the state for the next step."""
        state = self._second.init(mean) if state is None else copy.deepcopy(state)
        return self._second.encode(mean, state, named(rng, f"sum of chunk {rng.worker}"))


def owned_by(state: State) -> list[Tensor]:
    """The residuals of sums in a state, also of one inside others; none without a two-shot."""
    if isinstance(state, Shots):
        return [] if state.owned is None else [state.owned]
    if isinstance(state, tuple | list):  # of a policy, or of parameters
        return [owned for each in state for owned in owned_by(each)]
    return owned_by(state.inner) if hasattr(state, "inner") else []


def mean_of(payloads: Sequence[Payload], chunk: Tensor) -> Tensor:
    """Mean of decoded payloads, like `chunk`; of 16-bit gradients in float32."""
    mean = torch.zeros_like(chunk, dtype=wide(chunk.dtype))
    for payload in payloads:
        payload.add_to(mean, 1 / len(payloads))
    return mean


def _mean_at_owner(
    payloads: Sequence[Payload], chunk: Tensor, rank: int
) -> Generator[Collective, Any, Tensor]:
    """The mean over workers of what was encoded of this worker's chunk."""
    if all(
        isinstance(each, Dense) and each.values.dtype == wide(chunk.dtype) for each in payloads
    ):
        tensors = tuple(each.values for each in payloads)  # type: ignore[attr-defined]
        mean: Tensor = yield ReduceScatter(tensors, rank, "mean")
        return mean
    received: list[Payload] = yield AllToAll(tuple(payloads))
    return mean_of(received, chunk)


def _with_left_elsewhere(flat: Tensor, owned: Tensor, own: slice, workers: int) -> Tensor:
    """Add the owned residual of chunks that other workers own now, n times: it is of the mean.

    It stays where it is, for the memory around, which does not know of it, keeps its opposite.
    """
    whole = flat.to(owned.dtype, copy=True)
    for place in (slice(own.start), slice(own.stop, None)):
        whole[place].add_(owned[place], alpha=workers)
    return saturated(whole, flat.dtype)


def _bits_of_parts(bits: Bound | None) -> Bound | None:
    if bits is None:
        return None
    return Bound(bits.text, lambda payload: sum(map(bits, payload.parts)))
