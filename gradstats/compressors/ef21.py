from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors.base import Collective, Compressor, State, Step
from gradstats.compressors.feedback import Memory
from gradstats.compressors.payloads import Payload
from gradstats.compressors.rng import Rng


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
        """Encode gradient - estimate; the estimate is updated in place."""
        payload, inner = self.compressor.encode(grad.detach() - state.own, state.inner, rng)
        _learn(state.own, payload.decode())
        return payload, Estimates(state.own, state.mean, inner)

    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """As `encode`; the update is the mean of all estimates."""
        step = yield from self.compressor.exchange(grad.detach() - state.own, state.inner, rng)
        _learn(state.own, step.sent.decode())
        update = state.mean + step.update
        _learn(state.mean, step.update)
        return Step(update, step.sent, Estimates(state.own, state.mean, step.state))


def _learn(estimate: Tensor, news: Tensor) -> None:
    estimate += torch.where(news.isfinite(), news, 0).view_as(estimate).to(estimate.dtype)
