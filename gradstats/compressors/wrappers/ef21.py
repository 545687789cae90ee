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
from gradstats.compressors.wrappers.two_shot import without_owned
from gradstats.payloads.base import Payload


@dataclass(eq=False)
class Estimates:
    """What the workers know of each other's gradients.

    Attributes:
        own: h, this worker's gradient as all others have it, shaped as the gradient.
        mean: mean of h over all workers.
        inner: state of the wrapped compressor.
    """

    own: Tensor
    mean: Tensor
    inner: State

    def clone(self) -> Estimates:
        """Return a copy that later calls do not change."""
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
        """Start with estimates of 0."""
        zeros = grad.detach().new_zeros(grad.shape)
        return Estimates(zeros, zeros.clone(), self.compressor.init_under_memory(grad))

    def before(self, grad: Tensor, state: State, *, reuse: bool = False) -> tuple[Tensor, State]:
        """Subtract what the receivers have."""
        return grad - state.own, state

    def after(
        self, sent: Payload, corrected: Tensor, state: State, update: Tensor | None = None
    ) -> Estimates:
        """Add to the estimates what was sent."""
        if update is None:
            own = _learned(state.own, sent.decode())
            return Estimates(own, state.mean, state.inner)
        # what is broken on any worker none learns, or the mean would not be that of all h
        known = update.isfinite()
        own = _learned(state.own, torch.where(known.reshape(-1), sent.decode(), 0))
        return Estimates(own, _learned(state.mean, update), state.inner)

    def received(self, update: Tensor, state: State) -> Tensor:
        """Return the mean of all estimates."""
        mean: Tensor = state.mean + update
        return mean

    def dense(self, grad: Tensor, state: State) -> Generator[Collective, Any, Step]:
        """Send the gradients uncompressed; they become the estimates."""
        step = yield from super(Memory, self).dense(grad, state)
        if not step.update.isfinite().all():
            return step
        inner = without_owned(state.inner)  # all receivers have the gradients themselves
        return replace(step, state=Estimates(grad.detach().clone(), step.update, inner))

    def resharded(self, states: Sequence[State], worker: int, workers: int) -> Estimates:
        """Continue from the mean of all h."""
        mean = states[0].mean
        inner = self.compressor.resharded([state.inner for state in states], worker, workers)
        # what owners of chunks held back was of the estimates that are given up
        return Estimates(mean.clone(), mean.clone(), without_owned(inner))


def _learned(estimate: Tensor, news: Tensor) -> Tensor:
    return estimate + torch.where(news.isfinite(), news, 0).view_as(estimate).to(estimate.dtype)
