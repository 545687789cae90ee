"""The law suite rejects memories that move where they must not, or rest where they must move."""

from dataclasses import dataclass, replace

import pytest
import torch

from gradstats.compressors import ErrorFeedback, Memory, Step, TopK
from gradstats.compressors.base import Compressor
from gradstats.compressors.methods.signum import Signum
from gradstats.compressors.rounds import alone
from gradstats.compressors.wrappers.ef21 import EF21, Estimates
from gradstats.compressors.wrappers.error_feedback import Residual
from gradstats.compressors.wrappers.velocity import Velocities, Velocity
from gradstats.testing import check_compressor
from tests.testing.test_compressor_laws import broken_laws


class InPlace(ErrorFeedback):
    """Adds to its residual while it encodes, as one may where no step is ever called off."""

    def exchange(self, grad, state, rng=None):
        compensated = state.residual.add_(grad)
        step = yield from self.compressor.exchange(compensated, state.inner, rng)
        step.sent.remove_from(compensated.view(-1))
        return Step(step.update, step.sent, Residual(compensated, step.state))


class InPlaceAtLast(EF21):
    """Learns in place, after the collective."""

    def exchange(self, grad, state, rng=None):
        step = yield from self.compressor.exchange(grad - state.own, state.inner, rng)
        state.own.add_(step.sent.decode().view_as(grad))
        return Step(state.mean + step.update, step.sent, Estimates(state.own, state.mean, None))


class MovesWhenDense(ErrorFeedback):
    """Takes what is left in place where everything is sent."""

    def dense(self, grad, state):
        whole = state.residual.add_(grad).clone()
        step = yield from Compressor.dense(self, whole, state)
        return replace(step, state=Residual(state.residual.zero_(), state.inner))


class MovesWhenAsked(Velocity):
    """Moves on when it is only asked what the optimizer would get."""

    def uncompressed(self, grad, state):
        return state.momentum.mul_(self.momentum).add_(grad)


class RestsWhenDense(Velocity):
    """What is small gets no momentum: the gradient is sent as it is."""

    def dense(self, grad, state):
        return (yield from Compressor.dense(self, grad, state))


class MaskedWhenDense(Velocity):
    """Clears the momentum of everything that is sent, also where nothing was selected."""

    def dense(self, grad, state):
        step = yield from super().dense(grad, state)
        after = Velocities(torch.zeros_like(grad), step.state.residual, None)
        return replace(step, state=after)


class TwiceWhenDense(ErrorFeedback):
    """Keeps what it has sent."""

    def dense(self, grad, state):
        step = yield from Compressor.dense(self, grad + state.residual, state)
        return replace(step, state=Residual(grad.clone(), state.inner))


class HasNoMomentum(Velocity):
    """Names the gradient where it is asked what the optimizer would get."""

    def uncompressed(self, grad, state):
        return grad if state.momentum.any() else 2 * grad


BREAKS = {
    InPlace: "untouched-states",
    InPlaceAtLast: "untouched-states",
    MovesWhenDense: "untouched-states",
    MovesWhenAsked: "untouched-states nothing-compressed",
    RestsWhenDense: "nothing-compressed",
    MaskedWhenDense: "nothing-compressed",
    TwiceWhenDense: "nothing-compressed",
    HasNoMomentum: "nothing-compressed",
}


@pytest.mark.parametrize("member", BREAKS, ids=lambda member: member.__name__)
def test_a_broken_memory_breaks_exactly_these_laws(member):
    dataclass(frozen=True)(member)
    assert broken_laws(member(TopK(0.01))) == set(BREAKS[member].split())


@dataclass(frozen=True)
class Averaging(Memory):
    """Anyone's memory, which says nothing of dense gradients."""

    compressor: Compressor
    name = "averaging"

    def init(self, grad):
        return Residual(grad.new_zeros(grad.shape), self.compressor.init(grad))

    def encode(self, grad, state, rng=None):
        step = alone(self.exchange(grad, state, rng))
        return step.sent, step.state

    def exchange(self, grad, state, rng=None):
        compensated = state.residual + grad
        step = yield from self.compressor.exchange(compensated, state.inner, rng)
        step.sent.remove_from(compensated.view(-1))
        return Step(step.update, step.sent, Residual(compensated, step.state))


def test_anyones_memory_is_taken_through_dense_gradients():
    assert Averaging.steers
    check_compressor(Averaging(TopK(0.01)), fresh_process=False)


def test_small_parameters_get_signs_too():
    member, grad = Signum(beta=0.5), torch.tensor([3.0, -1.0, 0.5])
    state = member.init(grad)
    for factor in (1, 1, -2):
        step = alone(member.dense(factor * grad, state))
        assert torch.equal(step.update, alone(member.exchange(factor * grad, state)).update)
        assert torch.equal(step.update, member.uncompressed(factor * grad, state))
        state = step.state
