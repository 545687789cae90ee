"""Memory: a compressor around another one, with a memory of what was or was not sent."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.contracts import Contract
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.rounds import Collective, Exchanges, State, Step, Terms
from gradstats.kernels import recycling
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


class Memory(Compressor):
    r"""A compressor around another one, with a memory of what was or was not sent.

    Authors write `init`, `before` and `after`; `encode` and `exchange` follow:

    .. math:: (v_t, s) = \text{before}(g_t, s_t), \quad \hat g_t = C(v_t), \quad
              s_{t+1} = \text{after}(\hat g_t, v_t, s)

    The state is a dataclass with the state of the compressor inside as its field `inner`.
    """

    compressor: Compressor
    steers = True  # unless a class knows that its memory holds errors alone
    uses_update: ClassVar[bool] = True  # whether `after` and `received` need the mean update

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ValueError(f"compressor must be a compressor, got {self.compressor!r}")
        if isinstance(self.compressor, Memory):
            # two memories of the same error would send it twice
            raise ValueError(f"compressor must not have a memory inside, got {self.compressor}")
        super().__post_init__()

    def before(self, grad: Tensor, state: State, *, reuse: bool = False) -> tuple[Tensor, State]:
        """Return what the compressor inside encodes, and the state for `after`.

        Args:
            grad: this step's gradient, detached; read only.
            state: from `init` or from the step before.
            reuse: whether the tensors of `state` may be overwritten. Otherwise the state must stay
                unchanged, because the step may still be called off.
        """
        raise NotImplementedError(f"{type(self).__name__} must define before")

    def terms(self, grad: Tensor, state: State, *, reuse: bool = True) -> Terms:
        """Return two tensors whose sum is what `before` returns, or None: use `before`.

        A compressor adds them while it selects (`Compressor.encode_sum`) or multiplies
        (`Compressor.exchange_all`). `after` gets `state` itself.

        Args:
            grad: this step's gradient, detached; read only.
            state: from `init` or from the step before.
            reuse: whether the tensors of `state` may be overwritten: the sum takes the place of
                the first.
        """
        return None

    def after(
        self, sent: Payload, corrected: Tensor, state: State, update: Tensor | None = None
    ) -> State:
        """Return the state for the next step; its `inner` is set by the caller.

        Args:
            sent: what this worker counts as sent.
            corrected: what the compressor inside has encoded; may be overwritten.
            state: what `before` returned.
            update: mean over all workers of what was sent; None if this worker only encodes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define after")

    def received(self, update: Tensor, state: State) -> Tensor:
        """Return what the optimizer gets, from the mean of what was sent and the last state."""
        return update

    def compensated(self, grad: Tensor, state: State) -> Tensor:
        r"""Return the compensated gradient v: the update that a lossless compressor would give.

        .. math:: v_t = \text{received}(\text{before}(g_t, s_t))

        It is gradient + residual as the memory holds it back: :math:`g_t + \gamma e_t` of `ef`,
        :math:`g_t + e_t` of `lowpass`, the accumulated velocity of `velocity`. `ef21` holds
        nothing back: receivers add what it sends to their estimates, so that v is the gradient.

        Args:
            grad: g, this step's gradient, in its shape.
            state: s, from `init` or from the step before; it stays as it is.
        """
        return self.received(self.before(grad.detach(), state)[0], state)

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode what `before` returns; the buffers of the state are reused."""
        grad = grad.detach()
        terms = self.terms(grad, state)
        if terms is None:
            corrected, state = self.before(grad, state, reuse=True)
            payload, inner = self.compressor.encode(corrected, state.inner, rng)
        else:
            corrected = terms[0]
            payload, inner = self.compressor.encode_sum(terms, corrected, state.inner, rng)
        return payload, replace(self.after(payload, corrected, state), inner=inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """Exchange what `before` returns; the memory counts what the exchange reports as sent."""
        corrected, midway, terms = self._begun(grad, state)
        inner = midway.inner
        if terms is None:
            step = yield from self.compressor.exchange(corrected, inner, rng)
        else:
            step = yield from self.compressor.exchange_sum(terms, corrected, inner, rng)
        return self._ended(step, corrected, midway, state)

    def exchange_all(
        self,
        grads: Sequence[Tensor],
        states: Sequence[State],
        rngs: Sequence[Rng | None],
        terms: Sequence[Terms] = (),
    ) -> Exchanges[list[Step]]:
        """See `Compressor.exchange_all`; the compressor inside gets all at once if it batches."""
        if not self.compressor.batches:
            return (yield from super().exchange_all(grads, states, rngs, terms))
        triples = [self._begun(*pair) for pair in zip(grads, states, strict=True)]
        totals, midways, sums = map(list, zip(*triples, strict=True))
        inner = [midway.inner for midway in midways]
        steps = yield from self.compressor.exchange_all(totals, inner, rngs, sums)
        ended = zip(steps, totals, midways, states, strict=True)
        return [self._ended(*each) for each in ended]

    def _begun(self, grad: Tensor, state: State) -> tuple[Tensor, State, Terms]:
        """What `before` returns, and the terms of which it is still to become the sum."""
        grad = grad.detach()
        terms = self.terms(grad, state, reuse=False)
        if terms is None:
            return (*self.before(grad, state), None)
        return recycling.empty_like(grad), state, terms

    def _ended(self, step: Step, corrected: Tensor, midway: State, state: State) -> Step:
        """The step of this memory, from that of the compressor inside."""
        if not self.uses_update:
            later = self.after(step.sent, corrected, midway)
            return step.with_state(replace(later, inner=step.state))
        later = self.after(step.sent, corrected, midway, step.update)
        return Step(self.received(step.update, state), step.sent, replace(later, inner=step.state))

    @property
    def contract(self) -> Contract:
        """Contract of the compressor inside, with a memory and no bound on a single step."""
        return replace(
            self.compressor.contract,
            delta=None,
            omega=None,
            in_expectation=False,
            unbiased=False,
            has_memory=True,
            wants_feedback=False,
        )

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """Run the step uncompressed: this memory around no compression."""
        inside: dict[str, Any] = {"compressor": NoCompression()}
        whole: Memory = replace(self, **inside)  # type: ignore[type-var]
        step = yield from whole.exchange(grad, replace(state, inner=None))
        return replace(step, state=replace(step.state, inner=state.inner))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> State:
        """See `Compressor.resharded`; a memory must define what becomes of it."""
        raise ValueError(f"the number of workers must stay, got another one for {self}")

    def observe(self, state: State, loss: float) -> State:
        """Pass the loss to the compressor inside."""
        state.inner = self.compressor.observe(state.inner, loss)
        return state

    @property
    def label(self) -> str:
        """Name and settings without the compressor inside: `ef`, `ef(gamma=0.7)`."""
        settings = self.spec.removeprefix(f"{self.name}({self.compressor}").strip(", )")
        return f"{self.name}({settings})" if settings else self.name

    @property
    def ratio_asked(self) -> float | None:
        """Target ratio of the compressor inside."""
        return self.compressor.ratio_asked

    def target_count(self, numel: int) -> int:
        """Target count of the compressor inside, whose parts may have their own targets."""
        return self.compressor.target_count(numel)


def encoded(
    grads: Iterable[tuple[int, Tensor]],
    memory: Memory,
    *,
    seed: int = 0,
    losses: Mapping[int, float] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield what the compressor inside a memory encodes: (step, gradient + residual).

    Of `ef21` it is the gradient minus the receivers' estimate of it. Steps with a NaN or inf are
    skipped, as in a replay, and steps without a loss if the compressor needs one.

    Args:
        grads: (step, flat gradient) in the order of training.
        memory: with a compressor inside.
        seed: seed of its random numbers.
        losses: loss by step, for compressors that need one.
    """
    state, observes = None, "loss" in memory.contract.needs
    for step, grad in grads:
        loss = (losses or {}).get(step, math.nan)
        if not grad.isfinite().all() or (observes and math.isnan(loss)):
            continue
        state = memory.init(grad) if state is None else state
        state = memory.observe(state, loss) if observes else state
        yield step, memory.before(grad, state)[0]
        _, state = memory.encode(grad, state, Rng(seed, step))
