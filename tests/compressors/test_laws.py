"""Every member obeys the law suite, and the law suite rejects members that are broken."""

import copy
import random
from dataclasses import dataclass, replace

import pytest
import torch

from gradstats.compressors import (
    COMPRESSORS,
    Bound,
    Compressor,
    Contract,
    Rng,
    Step,
    compressor,
    compressors,
)
from gradstats.compressors.contracts import KEPT_SHARE, SPARSE_BITS
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Masked, Sparse
from gradstats.testing import check_compressor, compressor_laws
from gradstats.testing.contract_laws import contraction, expectation, variance

WITH_FEEDBACK = [str(each) for name in COMPRESSORS for each in compressors(f"ef({name})", [0.01])]


def members(*ratios):
    return [str(each) for name in COMPRESSORS for each in compressors(name, ratios)]


def marked(specs, mark, known):
    return [pytest.param(spec, marks=mark) for spec in specs if spec not in known]


# the laws put a memory around every member; the soak also takes it as a member
FIRST = members(0.01)
SLOW = ["count-sketch", "randomk(0.01)", "wangni(0.01)", "qsparse(0.01)", "co3", "orq"]
SLOW += ["qsgd-shared", "thc", "mstopk(0.01)"]  # expectations over 100 draws each
SPECS = [spec for spec in FIRST if spec not in SLOW]
SPECS += [pytest.param(spec, marks=pytest.mark.slow) for spec in SLOW]
SPECS += marked(members(0.1, 0.001, 1.0) + WITH_FEEDBACK, pytest.mark.soak, FIRST)


@pytest.mark.parametrize("spec", SPECS)
def test_every_member_obeys_the_laws(spec):
    check_compressor(compressor(spec), fresh_process=False)


@pytest.mark.parametrize("spec", ["randomk(0.01)", "dgc(0.01)"])
@pytest.mark.slow
def test_laws_hold_wherever_the_random_numbers_start(spec):
    rng = Rng(seed=7, step=100, parameter="weight", worker=2)
    check_compressor(compressor(spec), rng=rng, fresh_process=False)


@pytest.mark.parametrize("spec", ["sidco-e(0.01, stages=3)", "sidco-gp(0.001, rule=escape)"])
def test_settings_other_than_the_ratio_obey_the_laws(spec):
    check_compressor(compressor(spec), fresh_process=False)


# --- a bound that is declared too well is found out, on the inputs at which it is reached ---

SETTINGS = ["terngrad(clip=0)", "terngrad(clip=0, bucket=64)", "terngrad-shared(clip=0)"]
SETTINGS += ["qsgd(bits=2)", "qsgd(bits=8)", "qsgd(norm=max)", "qsgd(bits=2, norm=max)"]
SETTINGS += ["nuqsgd(steps=6)", "randomk(0.01, scaled=True)", "count-sketch(estimate=mean)"]
SETTINGS += ["fp8(e5m2)", "wangni(0.1)", "atomo(3)", "exact-threshold(0.01) | mxfp4"]
EXACT = {"none", "lossless"}  # they lose nothing, and half of nothing is nothing


def declared():
    """(spec, constant) of everything that declares a δ or an ω."""
    for spec in [*FIRST, *SETTINGS]:
        contract = compressor(spec).contract
        for constant in ("omega", "delta"):
            if getattr(contract, constant) and spec not in EXACT:
                yield spec, constant


def boasting(spec, constant):
    """The member with half of the error that its contract allows."""
    member = compressor(spec)
    contract = member.contract
    bound = getattr(contract, constant)
    half = {"omega": lambda p: bound(p) / 2, "delta": lambda p: (1 + bound(p)) / 2}[constant]
    better = replace(contract, **{constant: Bound(f"better than {bound.text}", half)})
    boaster = copy.copy(member)
    kind = type(type(member).__name__, (type(member),), {"contract": better})
    object.__setattr__(boaster, "__class__", kind)
    return boaster


BOUNDS = [
    (grad, check)
    for gradients, checks in compressor_laws.plan()
    for check in checks
    if check in (contraction, expectation, variance)
    for grad in gradients.values()
]


def keeps_its_bounds(member):
    return all(holds for grad, check in BOUNDS for _, holds in check(member, grad.clone(), Rng()))


@pytest.mark.parametrize(("spec", "constant"), list(declared()))
def test_half_of_the_error_that_is_declared_is_found_out(spec, constant):
    assert not keeps_its_bounds(boasting(spec, constant))


@pytest.mark.parametrize("spec", ["terngrad(clip=0)", "natural", "qsgd"])
@pytest.mark.slow
def test_the_law_suite_rejects_half_of_a_variance(spec):
    with pytest.raises(AssertionError, match="omega"):
        check_compressor(boasting(spec, "omega"), fresh_process=False)


@pytest.mark.parametrize("spec", SETTINGS)
@pytest.mark.slow
def test_settings_with_bounds_of_their_own_keep_them(spec):
    assert keeps_its_bounds(compressor(spec))


@pytest.mark.parametrize("spec", SETTINGS)
@pytest.mark.soak
def test_settings_with_bounds_of_their_own_obey_the_laws(spec):
    check_compressor(compressor(spec), fresh_process=False)


# Each of these repeats a mistake found in released code, or one step away from it.


BIASED = Contract("all_gather", delta=KEPT_SHARE)


@dataclass(frozen=True)
class Broken(Compressor):
    name = "broken"
    contract = BIASED

    def encode(self, grad, state, rng=None):
        flat = grad.detach().reshape(-1)
        return self.choose(flat, rng), state

    def choose(self, flat, rng):
        k = min(10, flat.numel())
        return Sparse.at(flat, flat.abs().topk(k).indices)


class SignedThreshold(Broken):
    """Thresholds the signed values, so that only positive ones can be kept."""

    def choose(self, flat, rng):
        return Sparse.at(flat, flat.topk(min(10, flat.numel())).indices)


class PositionalTrim(Broken):
    """Selects too many, then keeps the first k by position."""

    def choose(self, flat, rng):
        chosen = flat.abs().topk(min(15, flat.numel())).indices.sort().values
        return Sparse.at(flat, chosen[:10])


class WithReplacement(Broken):
    """Draws indices with repetitions."""

    contract = Contract("all_gather", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        if flat.numel() == 0:
            return Sparse.at(flat, torch.zeros(0, dtype=torch.int64))
        return Sparse.at(flat, rng.shared.integers(max(1, flat.numel() // 3), flat.numel()))


class TooRarely(Broken):
    """Never takes the last tenth of the elements, and sends their share elsewhere."""

    contract = Contract("all_reduce", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        n = flat.numel()
        inner = max(n - n // 10, min(n, 1))
        stream = rng.shared
        return Sparse.at(flat, stream.subset(min(n, 1 + n // 5), inner) if n else torch.arange(0))


class Reseeds(Broken):
    """Seeds the global generator, which makes dropout equal on all workers."""

    def choose(self, flat, rng):
        torch.manual_seed(5)  # the mistake under test
        return super().choose(flat, rng)


class DrawsGlobally(Broken):
    """Draws from the standard library's generator."""

    def choose(self, flat, rng):
        random.random()
        return super().choose(flat, rng)


class Alias(Broken):
    """The payload is a view of the gradient."""

    contract = Contract("all_reduce", delta=Bound("1", lambda payload: 1.0))

    def choose(self, flat, rng):
        return Dense(flat)


class WritesGradient(Broken):
    """Normalises the gradient in place."""

    def choose(self, flat, rng):
        flat.mul_(0.5)
        return super().choose(flat, rng)


class InvertedSigns(Broken):
    """Scaled sign with an inverted mask: the decoded vector points the other way."""

    contract = Contract("all_reduce", delta=Bound("0", lambda payload: 0.0))

    def choose(self, flat, rng):
        scale = flat.abs().mean() if flat.numel() else flat.new_zeros(())
        return Dense(torch.where(flat > 0, -scale, scale))


class SharedState(Broken):
    """Keeps its residual in itself, under no name, so that all tensors share it."""

    def init(self, grad):
        object.__setattr__(self, "residual", 0.0)

    def encode(self, grad, state, rng=None):
        compensated = grad.detach().reshape(-1) + self.residual
        payload = self.choose(compensated, rng)
        object.__setattr__(self, "residual", compensated - payload.decode())
        return payload, state


@dataclass(frozen=True, eq=False)
class LocalContext(Sparse):
    """Decodes with a scale that never travels."""

    scale: float = 1.0

    @property
    def values(self):
        return super().values * self.scale


class DecodesLocally(Broken):
    contract = Contract("all_gather")

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return LocalContext(Dense(payload.values / 2), payload.numel, payload.indices, scale=2.0)


@dataclass(frozen=True, eq=False)
class Boast(Sparse):
    """Counts a byte a value although it ships four."""

    @property
    def nbytes(self):
        return super().nbytes - 3 * self.count


class UnderstatesBytes(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Boast(payload.kept, payload.numel, payload.indices)


@dataclass(frozen=True, eq=False)
class Overwrites(Sparse):
    """Writes its values instead of adding them."""

    def add_to(self, out, weight=1.0):
        out[self.indices] = self.values.to(out.dtype)


class IgnoresWeight(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Overwrites(payload.kept, payload.numel, payload.indices)


class SumsWorkers(Broken):
    """The update is the sum over workers, not the mean."""

    def exchange(self, grad, state, rng=None):
        step = yield from super().exchange(grad, state, rng)
        return Step(step.update * 2, step.sent, step.state)


class OwnMasks(Broken):
    """All-reduces the values of masks that differ from worker to worker."""

    contract = Contract("all_reduce", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        k = min(flat.numel(), 1 + flat.numel() // 10)
        return Masked(Dense(flat[rng.own.subset(k, flat.numel())]), flat.numel(), rng.own)


class HidesNaN(Broken):
    """Replaces NaN and inf by numbers."""

    def choose(self, flat, rng):
        return super().choose(flat.nan_to_num(0.0, 1.0, -1.0), rng)


class FailsOnEmpty(Broken):
    """Takes ten elements of nothing."""

    def choose(self, flat, rng):
        return Sparse.at(flat, flat.abs().topk(10).indices)


class LosesSmall(Broken):
    """Sends values of another tensor than it counts: a residual that cannot conserve."""

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return payload.with_values(payload.values * 1.5)


class RoundsTheWrongWay(Broken):
    """Stochastic rounding that goes up with 1 - p in place of p."""

    contract = Contract("all_gather", unbiased=True, random=True)

    def choose(self, flat, rng):
        scale = flat.abs().max() if flat.numel() else flat.new_ones(())
        share = (flat.abs() / scale).nan_to_num(1.0)
        up = rng.own.uniform(flat.numel()) < 1 - share
        return Dense(torch.where(up, scale, 0 * scale) * flat.sign())


class ShrinksALittle(Broken):
    """Unbiased but for a factor of 0.97."""

    contract = Contract("all_gather", unbiased=True, random=True)

    def choose(self, flat, rng):
        noise = (rng.own.uniform(flat.numel()) - 0.5).to(flat.dtype) * flat.abs()
        return Dense(0.97 * flat + noise)


class ForgetsTheScale(Broken):
    """Random-k that is called unbiased, but not divided by its probability."""

    contract = Contract("all_reduce", unbiased=True, random=True)

    def choose(self, flat, rng):
        stream = rng.shared
        places = stream.subset(min(flat.numel(), 1 + flat.numel() // 2), flat.numel())
        return Masked(Dense(flat[places]), flat.numel(), stream)


class UnderstatesVariance(Broken):
    """Says ω = 0.1 where it is 1."""

    contract = Contract(
        "all_gather", omega=Bound("0.1", lambda payload: 0.1), unbiased=True, random=True
    )

    def choose(self, flat, rng):
        up = rng.own.uniform(flat.numel()) < 0.5
        return Dense(torch.where(up, 2 * flat, 0 * flat))


class WideSigns(Broken):
    """Signs that are said to take a bit and travel as bytes and more."""

    contract = Contract("all_gather", bits=Bound("d", lambda payload: payload.numel))

    def choose(self, flat, rng):
        return Dense(flat.sign() * flat.abs().sum() / max(flat.numel(), 1))


class LongIndices(Broken):
    """64-bit indices where the formula counts a good code."""

    contract = Contract("all_gather", delta=KEPT_SHARE, bits=SPARSE_BITS)

    def choose(self, flat, rng):
        found = Sparse.at(flat, flat.abs().topk(min(flat.numel(), 1 + flat.numel() // 50)).indices)
        return Doubled(found.kept, found.numel, found.indices)


@dataclass(frozen=True, eq=False)
class Doubled(Sparse):
    """Ships its values twice."""

    def sections(self):
        yield from super().sections()
        yield bytes(4 * self.count)

    @property
    def inner_nbytes(self):
        return super().inner_nbytes + 4 * self.count


class ClampsToTheSignedMaximum(Broken):
    """A hard threshold of at most max(x): all of an all-negative gradient is zeroed out."""

    contract = Contract("all_gather", delta=KEPT_SHARE)

    def choose(self, flat, rng):
        if not flat.numel():
            return Sparse.at(flat, torch.zeros(0, dtype=torch.int64))
        limit = min(0.5, float(flat.max()))
        return Sparse.at(
            flat * (flat > -limit), (~(flat.abs() <= abs(limit))).nonzero().squeeze(1)
        )


class FloatIndices(Broken):
    """Indices that went through a float, which counts up to 256 only."""

    def choose(self, flat, rng):
        k = min(10, flat.numel())
        places = (
            flat.abs().topk(k).indices.to(torch.bfloat16).long().clamp(max=max(0, len(flat) - 1))
        )
        return Sparse.at(flat, places.unique())


class PadsWithGarbage(Broken):
    """Scaled sign whose mean counts elements that are not there."""

    contract = Contract("all_gather", delta=Bound("1/d", lambda payload: 1 / payload.numel))

    def choose(self, flat, rng):
        padded = torch.cat([flat, flat.new_full((flat.numel() + 1,), 1e4)])
        return Dense(flat.sign() * padded.abs().mean())


BROKEN = {
    RoundsTheWrongWay: "E C(x) = x",
    ShrinksALittle: "E C(x) = x, along x",
    ForgetsTheScale: "E C(x) = x",
    UnderstatesVariance: "omega",
    WideSigns: "within 5 % of bits",
    LongIndices: "from_bytes reads the bytes",
    ClampsToTheSignedMaximum: "‖x - C(x)‖²",
    FloatIndices: "‖x - C(x)‖²",
    PadsWithGarbage: "‖x - C(x)‖²",
    SignedThreshold: "‖x - C(x)‖²",
    PositionalTrim: "‖x - C(x)‖²",
    WithReplacement: "no call fails",
    TooRarely: "E‖x - C(x)‖²",
    Reseeds: "global generators",
    DrawsGlobally: "global generators",
    Alias: "owns its values",
    WritesGradient: "is not written",
    InvertedSigns: "‖x - C(x)‖²",
    SharedState: "share a state",
    DecodesLocally: "the bytes alone",
    UnderstatesBytes: "nbytes is the length",
    IgnoresWeight: "add_to takes a weight",
    SumsWorkers: "mean of what was sent",
    OwnMasks: "the same update",
    HidesNaN: "NaN and inf",
    FailsOnEmpty: "no call fails",
    LosesSmall: "‖x - C(x)‖²",
}


@pytest.mark.slow
def test_the_unbroken_base_of_the_broken_ones_obeys_the_laws():
    check_compressor(Broken())


@pytest.mark.parametrize("member", BROKEN, ids=lambda member: member.__name__)
@pytest.mark.slow
def test_the_law_suite_rejects(member):
    with pytest.raises(AssertionError) as caught:
        check_compressor(member(), fresh_process=False)
    assert BROKEN[member] in str(caught.value)
    assert "broken" in str(caught.value)
