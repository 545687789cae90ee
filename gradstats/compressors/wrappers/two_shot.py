"""Two-shot exchange: encoded chunks to their owners, the sum there, encoded, back to all."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Bound, Contract, summed
from gradstats.compressors.rounds import (
    AllGather,
    AllToAll,
    Collective,
    ReduceScatter,
    State,
    Step,
)
from gradstats.compressors.short_forms import Joint, needs_rng
from gradstats.compressors.wrappers.chunks import check_inside, chunks, named, wide
from gradstats.kernels.ranges import left, saturated, times
from gradstats.payloads.base import Dense, Payload
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.sparse import Masked
from gradstats.rng import Rng


@dataclass(eq=False)
class Shots:
    """What a two-shot exchange keeps from step to step.

    Attributes:
        owned: what the second code of this worker has lost, where the worker was the owner: it
            counts as a share of the mean; shaped as the gradient. None without a memory around.
        first: states of the first code, one per chunk. Another number of them than of workers
            shows their form only: both codes then start with the next step.
        second: state of the second code.
    """

    owned: Tensor | None
    first: tuple[State, ...] = ()
    second: State = None


@dataclass(frozen=True, eq=False, repr=False)
class Share(Bundle):
    """The encoded chunks of a gradient to which the worker had added owned residuals.

    It decodes to what was delivered of the gradient itself.

    Attributes:
        parts: the chunks, in order.
        added: what was added, `[numel]`.
    """

    added: Tensor

    def decode(self) -> Tensor:
        """See `Payload.decode`."""
        return super().decode() - self.added

    def add_to(self, out: Tensor, weight: float = 1.0) -> None:
        """See `Payload.add_to`."""
        super().add_to(out, weight)
        out.sub_(self.added, alpha=weight)

    def remove_from(self, residual: Tensor) -> None:
        """See `Payload.remove_from`."""
        residual.copy_(left(residual, self.decode()))


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
    error is :math:`2 e \|g\|^2` for the mean gradient g: twice that of a gather or of one code.

    A memory goes around, `ef(twoshot(c))`. It then keeps a residual on every worker, and here one
    of the second code at the owner, which is added to the next sum:

    .. math:: m_r = s_r + \frac1n \sum_w D(C(g_w[r])), \qquad s_r \leftarrow m_r - \hat g[r].

    So the sum of all updates, of the mean residual and of all s is the sum of the mean gradients.
    After a change of owners, s of another worker's chunk goes there with the next gradient.

    `randomk(ratio)` sends the sums at the indices that it drew for the chunk: nothing is lost.

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
        check_inside(self, "compressor")
        if self.second is not None:
            check_inside(self, "second")
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
        flat = self.flattened(grad)
        return Shots(None, (self.compressor.init(flat),), self._second.init(flat))

    def init_under_memory(self, grad: Tensor) -> Shots:
        """Start with a residual of what the second code loses."""
        owned = torch.zeros(grad.shape, dtype=wide(grad.dtype), device=grad.device)
        return replace(self.init(grad), owned=owned)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Send encoded chunks to their owners, and the encoded mean of the own chunk to all."""
        rng = needs_rng(self, rng) if self.contract.random else rng or Rng()
        flat, owned = self.flattened(grad), state.owned
        parts = chunks(flat.numel(), rng.workers)
        own, added = parts[rng.worker], None
        if owned is not None and rng.workers > 1:
            added = _owned_elsewhere(owned.view(-1), own, rng.workers)
            flat = saturated(flat + added, flat.dtype)
        payloads, first = self._first_shot([flat[part] for part in parts], state.first, rng)
        mean = yield from _mean_at_owner(payloads, flat[own], rng.worker)
        if owned is not None:
            mean = mean + owned.view(-1)[own]
        second = state.second if len(state.first) == len(parts) else None
        sent, second = self._second_shot(saturated(mean, grad.dtype), second, rng, payloads)
        fixed = self.second is None and self.contract.fixed_length
        received: list[Payload] = yield AllGather(sent, tuple(payloads) if fixed else ())
        decoded = torch.cat([payload.decode().to(mean.dtype) for payload in received])
        update = saturated(decoded, grad.dtype)
        if owned is not None:
            owned = _owned_after(owned, own, mean, update)
        parts_sent = tuple(payloads)
        counted = Bundle(parts_sent) if added is None else Share(parts_sent, added)
        return Step(update.view(grad.shape), counted, Shots(owned, first, second))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Shots:
        """Give the sums' residuals to the new owners; all codes go on as on one old worker."""
        steps = [state for state in states if len(state.first) == len(states)]
        codes = steps[0] if steps else states[0]
        first = codes.first[:1] * (workers if steps else 1)
        if codes.owned is None:
            return Shots(None, first, codes.second)
        total = torch.stack([state.owned for state in states]).sum(dim=0)
        own, owned = chunks(total.numel(), workers)[worker], torch.zeros_like(total)
        owned.view(-1)[own] = total.view(-1)[own]
        return Shots(owned, first, codes.second)

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

    def _second_shot(
        self, mean: Tensor, state: State, rng: Rng, firsts: Sequence[Payload]
    ) -> tuple[Payload, State]:
        """The payload of the own chunk's mean, and the state for the next step."""
        state = self._second.init(mean) if state is None else copy.deepcopy(state)
        own = rng.worker
        draws = named(rng, f"sum of chunk {own}")
        if isinstance(firsts[own], Masked) and not self._second.contract.unbiased:
            # another subset would lose most of the sums; roundings draw numbers of their own
            draws = replace(named(rng, f"chunk {own}"), worker=rng.workers + own)
        return self._second.encode(mean, state, draws)


def owned_by(state: State) -> list[Tensor]:
    """The residuals of sums in a state, also of one inside others; none without a two-shot."""
    if isinstance(state, Shots):
        return [] if state.owned is None else [state.owned]
    if isinstance(state, tuple | list):  # of a policy, or of parameters
        return [owned for each in state for owned in owned_by(each)]
    return owned_by(state.inner) if hasattr(state, "inner") else []


def without_owned(state: State) -> State:
    """The state with the residuals of sums set to 0; without a two-shot as it is."""
    if isinstance(state, Shots):
        return replace(state, owned=None if state.owned is None else torch.zeros_like(state.owned))
    if isinstance(state, tuple | list):
        return type(state)(map(without_owned, state))
    return replace(state, inner=without_owned(state.inner)) if hasattr(state, "inner") else state


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


def _owned_elsewhere(owned: Tensor, own: slice, workers: int) -> Tensor:
    """The owned residual of chunks that other workers own now, n times: it is of the mean."""
    added = times(owned, workers)
    added[own] = 0
    return added


def _owned_after(owned: Tensor, own: slice, mean: Tensor, update: Tensor) -> Tensor:
    """What the update lacks of the mean at its owner; where it is broken, what was owned."""
    kept = torch.zeros_like(owned).view(-1)
    kept[own] = saturated(left(mean.double(), update[own].double()), owned.dtype)
    had = owned.view(-1).nan_to_num(0, 0, 0)
    return torch.where(update.isfinite(), kept, had).view_as(owned)


def _bits_of_parts(bits: Bound | None) -> Bound | None:
    if bits is None:
        return None
    return Bound(bits.text, lambda payload: sum(map(bits, payload.parts)))
