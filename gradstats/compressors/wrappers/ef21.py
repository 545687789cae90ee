from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.rounds import Collective, State, Step
from gradstats.compressors.wrappers.memory import Memory
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


@dataclass(eq=False)
class Estimates:
    """What the workers know of each other. Consumed by each call.

    Attributes:
        own: h, this worker's gradient as all others have it, shaped as the gradient.
        mean: of the h of all workers.
        inner: state of the wrapped compressor.
    """

    own: Tensor
    mean: Tensor
    inner: State

    def clone(self) -> Estimates:
        """A copy that later calls leave alone."""
        return Estimates(self.own.clone(), self.mean.clone(), copy.deepcopy(self.inner))


@dataclass(frozen=True)
class EF21(Memory):
    r"""Sends how the gradient differs from what the receivers have of it.

    .. math:: \hat g_t = h_t = h_{t-1} + C(g_t - h_{t-1}).

    The compressor inside must contract; the estimate converges where the gradient does. A NaN or
    inf is delivered in its own step and leaves h as it was.

    Args:
        compressor: any compressor.

    References:
        Richtárik et al., "EF21: a new, simpler, theoretically better, and practically faster
        error feedback", NeurIPS 2021.
    """

    compressor: Compressor
    name = "ef21"

    def init(self, grad: Tensor) -> Estimates:
        """Nothing is known."""
        zeros = grad.detach().new_zeros(grad.shape)
        return Estimates(zeros, zeros.clone(), self.compressor.init(grad))

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode gradient - estimate."""
        payload, inner = self.compressor.encode(grad.detach() - state.own, state.inner, rng)
        return payload, Estimates(_learned(state.own, payload.decode()), state.mean, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`; the update is the mean of all estimates."""
        step = yield from self.compressor.exchange(grad.detach() - state.own, state.inner, rng)
        # what any worker broke none learns, or the mean would not be that of all h
        known = step.update.isfinite()
        own = _learned(state.own, torch.where(known.reshape(-1), step.sent.decode(), 0))
        mean = _learned(state.mean, step.update)
        return Step(state.mean + step.update, step.sent, Estimates(own, mean, step.state))

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """The gradients themselves, which all know from then on."""
        step = yield from super(Memory, self).dense(grad, state)
        if not step.update.isfinite().all():
            return step
        return replace(step, state=Estimates(grad.detach().clone(), step.update, state.inner))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Estimates:
        """All go on from the mean of all h."""
        mean = states[0].mean
        inner = self.compressor.resharded([state.inner for state in states], worker, workers)
        return Estimates(mean.clone(), mean.clone(), inner)


def _learned(estimate: Tensor, news: Tensor) -> Tensor:
    return estimate + torch.where(news.isfinite(), news, 0).view_as(estimate).to(estimate.dtype)
