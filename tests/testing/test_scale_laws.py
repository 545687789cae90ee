"""The laws on scale reject the mistakes that they were made for, and no other law does."""

from dataclasses import dataclass

import pytest
import torch

from gradstats.compressors import AllReduce, Bound, Compressor, Contract, Rng, Step, compressor
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Sparse
from gradstats.testing.compressor_laws import LAWS
from tests.testing.test_compressor_laws import broken_laws

SCALE_LAWS = [law for law in LAWS if law.name in ("finite", "homogeneity", "near-the-range")]


def broken_facts(member):
    return [fact for law in SCALE_LAWS if law.binds(member) for fact in law.broken(member, Rng())]


@dataclass(frozen=True)
class Whole(Compressor):
    """Sends everything in float32 at least, to all."""

    name = "whole"
    contract = Contract("all_gather", delta=Bound("1", lambda payload: 1.0))

    def encode(self, grad, state, rng=None):
        flat = grad.detach().reshape(-1)
        wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
        return self.send(flat.to(wide, copy=True)), state

    def send(self, flat):
        return Gathered(flat)


class Gathered(Dense):
    """Not summable, so that the values of all workers are decoded."""

    summable = False


class Loose(Whole):
    """Promises nothing, so that only the laws on scale can reject it."""

    contract = Contract("all_gather")


class SquaresInFloat32(Loose):
    """The root of the mean square, whose squares leave the range."""

    def send(self, flat):
        return Gathered(flat.sign() * flat.square().sum().div(max(flat.numel(), 1)).sqrt())


class MultipliesByTheReciprocal(Loose):
    """Rounds x (1/m): the reciprocal of a subnormal m is infinite."""

    def send(self, flat):
        largest = flat.abs().amax() if flat.numel() else flat.new_ones(())
        return Gathered(torch.where(largest == 0, 0, (flat * (1 / largest)).round() * largest))


class AbsoluteEpsilon(Loose):
    """Guards a division by 1e-8, which small gradients are smaller than."""

    def send(self, flat):
        largest = flat.abs().amax() if flat.numel() else flat.new_ones(())
        return Gathered(flat / (largest + 1e-8) * largest)


class AbsoluteThreshold(Loose):
    """Keeps what is above 0.01, whatever the unit."""

    def send(self, flat):
        return Sparse.above(flat, 0.01)


class SumsBeforeDividing(Loose):
    """Adds up 16-bit gradients, and divides the sum."""

    def exchange(self, grad, state, rng=None):
        payload, state = self.encode(grad, state, rng)
        total = yield AllReduce(grad.reshape(-1).clone(), "sum")
        return Step((total / rng.workers).view(grad.shape), payload, state)


class CastsWithoutSaturating(Loose):
    """Rounds up to powers of two, some of which 16 bits do not have."""

    def send(self, flat):
        mantissa, exponent = torch.frexp(flat.double())
        up = torch.ldexp(mantissa.sign(), exponent).clamp(-3e38, 3e38).to(flat.dtype)
        return Gathered(torch.where(flat.isfinite(), up, flat))

    def exchange(self, grad, state, rng=None):
        payload, state = self.encode(grad, state, rng)
        mean = yield AllReduce(payload.decode(), "mean")
        return Step(mean.to(grad.dtype).view(grad.shape), payload, state)


class TakesTheFirst(Loose):
    """The update is this worker's own gradient."""

    def exchange(self, grad, state, rng=None):
        step = yield from super().exchange(grad, state, rng)
        return Step(grad.clone(), step.sent, state)


BREAKS = {
    SquaresInFloat32: ("finite homogeneity near-the-range", "finite in, finite out"),
    MultipliesByTheReciprocal: ("finite", "finite in, finite out"),
    AbsoluteEpsilon: ("homogeneity", "C(2^"),
    AbsoluteThreshold: ("homogeneity", "C(2^"),
    SumsBeforeDividing: ("near-the-range", "the update is finite for"),
    CastsWithoutSaturating: ("finite near-the-range", "finite in, finite update"),
    TakesTheFirst: ("several-workers near-the-range", "the same update for"),
}


@pytest.mark.parametrize("member", BREAKS, ids=lambda member: member.__name__)
def test_the_laws_on_scale_reject(member):
    laws, fact = BREAKS[member]
    assert any(fact in each for each in broken_facts(member()))
    assert broken_laws(member()) == set(laws.split())


def test_the_unbroken_base_obeys_the_laws():
    assert broken_laws(Whole()) == set()


def test_a_contract_says_that_a_method_knows_absolute_sizes():
    class Fixed(AbsoluteThreshold):
        contract = Contract("all_gather", scaling=None)

    assert broken_facts(Fixed()) == []
    assert compressor("fp16").contract.scaling is None
    assert compressor("ef(topk(0.1) | fp16)").contract.scaling is None
    assert compressor("topk(0.1) | qsgd").contract.scaling == 0


def test_a_contract_says_by_how_much_a_method_misses():
    class Nearly(Loose):
        contract = Contract("all_gather", scaling=1e-3)

        def send(self, flat):
            tall = flat.numel() and flat.abs().amax() > 1
            return Gathered(flat * (1.0005 if tall else 1.0))

    assert not any("C(2^" in fact for fact in broken_facts(Nearly()))
