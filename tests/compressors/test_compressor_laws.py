"""Every member obeys the law suite, and the law suite rejects members that are broken."""

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch

from gradstats.compressors import (
    COMPRESSORS,
    Compressor,
    Contract,
    ErrorFeedback,
    Rng,
    Step,
    compressor,
    compressors,
    from_bytes,
)
from gradstats.compressors.base import kept_share
from gradstats.compressors.payloads import Dense, Masked, Sparse, sparse
from gradstats.exchange import simulate
from gradstats.testing import check_compressor

RATIOS = [0.1, 0.01, 0.001, 1.0]
MEMBERS = [str(each) for name in COMPRESSORS for each in compressors(name, RATIOS)]
WITH_FEEDBACK = [str(each) for name in COMPRESSORS for each in compressors(f"ef({name})", [0.01])]
BIASED = Contract("all_gather", delta=kept_share)
N = 1000


@pytest.mark.parametrize("spec", dict.fromkeys(MEMBERS + WITH_FEEDBACK))
def test_every_member_obeys_the_laws(spec):
    check_compressor(compressor(spec))


@pytest.mark.parametrize("spec", ["randomk(0.01)", "dgc(0.01)"])
def test_laws_hold_wherever_the_random_numbers_start(spec):
    check_compressor(compressor(spec), rng=Rng(seed=7, step=100, parameter="weight", worker=2))


@pytest.mark.parametrize("spec", ["sidco-e(0.01, stages=3)", "sidco-gp(0.001, rule=escape)"])
def test_settings_other_than_the_ratio_obey_the_laws(spec):
    check_compressor(compressor(spec))


# Each of these repeats a mistake found in released code, or one step away from it.


@dataclass(frozen=True)
class Broken(Compressor):
    name = "broken"
    contract = BIASED

    def encode(self, grad, state, rng=None):
        flat = grad.detach().reshape(-1)
        return self.choose(flat, rng), state

    def choose(self, flat, rng):
        k = min(10, flat.numel())
        return sparse(flat, flat.abs().topk(k).indices)


class SignedThreshold(Broken):
    """Thresholds the signed values, so that only positive ones can be kept."""

    def choose(self, flat, rng):
        return sparse(flat, flat.topk(min(10, flat.numel())).indices)


class PositionalTrim(Broken):
    """Selects too many, then keeps the first k by position."""

    def choose(self, flat, rng):
        chosen = flat.abs().topk(min(15, flat.numel())).indices.sort().values
        return sparse(flat, chosen[:10])


class WithReplacement(Broken):
    """Draws indices with repetitions."""

    contract = Contract("all_gather", delta=kept_share, in_expectation=True, random=True)

    def choose(self, flat, rng):
        if flat.numel() == 0:
            return sparse(flat, torch.zeros(0, dtype=torch.int64))
        return sparse(flat, rng.shared.integers(max(1, flat.numel() // 3), flat.numel()))


class TooRarely(Broken):
    """Never takes the last tenth of the elements, and sends their share elsewhere."""

    contract = Contract("all_reduce", delta=kept_share, in_expectation=True, random=True)

    def choose(self, flat, rng):
        n = flat.numel()
        inner = max(n - n // 10, min(n, 1))
        stream = rng.shared
        return sparse(flat, stream.subset(min(n, 1 + n // 5), inner) if n else torch.arange(0))


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

    contract = Contract("all_reduce", delta=lambda payload: 1.0)

    def choose(self, flat, rng):
        return Dense(flat, flat.numel())


class WritesGradient(Broken):
    """Normalises the gradient in place."""

    def choose(self, flat, rng):
        flat.mul_(0.5)
        return super().choose(flat, rng)


class InvertedSigns(Broken):
    """Scaled sign with an inverted mask: the decoded vector points the other way."""

    contract = Contract("all_reduce", delta=lambda payload: 0.0)

    def choose(self, flat, rng):
        scale = flat.abs().mean() if flat.numel() else flat.new_zeros(())
        return Dense(torch.where(flat > 0, -scale, scale), flat.numel())


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

    def add_to(self, out, weight=1.0):
        super().add_to(out, weight * self.scale)


class DecodesLocally(Broken):
    contract = Contract("all_gather")

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return LocalContext(payload.values / 2, payload.numel, payload.indices, scale=2.0)


@dataclass(frozen=True, eq=False)
class Boast(Sparse):
    """Counts a byte a value although it ships four."""

    @property
    def nbytes(self):
        return super().nbytes - 3 * self.count


class UnderstatesBytes(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Boast(payload.values, payload.numel, payload.indices)


@dataclass(frozen=True, eq=False)
class Overwrites(Sparse):
    """Writes its values instead of adding them."""

    def add_to(self, out, weight=1.0):
        out[self.indices] = self.values.to(out.dtype)


class IgnoresWeight(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Overwrites(payload.values, payload.numel, payload.indices)


class SumsWorkers(Broken):
    """The update is the sum over workers, not the mean."""

    def exchange(self, grad, state, rng=None):
        step = yield from super().exchange(grad, state, rng)
        return Step(step.update * 2, step.sent, step.state)


class OwnMasks(Broken):
    """All-reduces the values of masks that differ from worker to worker."""

    contract = Contract("all_reduce", delta=kept_share, in_expectation=True, random=True)

    def choose(self, flat, rng):
        k = min(flat.numel(), 1 + flat.numel() // 10)
        return Masked(flat[rng.own.subset(k, flat.numel())], flat.numel(), rng.own)


class HidesNaN(Broken):
    """Replaces NaN and inf by numbers."""

    def choose(self, flat, rng):
        return super().choose(flat.nan_to_num(0.0, 1.0, -1.0), rng)


class FailsOnEmpty(Broken):
    """Takes ten elements of nothing."""

    def choose(self, flat, rng):
        return sparse(flat, flat.abs().topk(10).indices)


class LosesSmall(Broken):
    """Sends values of another tensor than it counts: a residual that cannot conserve."""

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return payload.with_values(payload.values * 1.5)


BROKEN = {
    SignedThreshold: "‖x - C(x)‖²",
    PositionalTrim: "‖x - C(x)‖²",
    WithReplacement: "from_bytes reads the bytes",
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


def test_the_unbroken_base_of_the_broken_ones_obeys_the_laws():
    check_compressor(Broken())


@pytest.mark.parametrize("member", BROKEN, ids=lambda member: member.__name__)
def test_the_law_suite_rejects(member):
    with pytest.raises(AssertionError) as caught:
        check_compressor(member())
    assert BROKEN[member] in str(caught.value)
    assert "broken" in str(caught.value)


def test_random_k_is_a_contraction_in_expectation_exactly():
    """E‖x - C(x)‖² = (1 - k/d)‖x‖²; the mean of 400 draws within 4 standard errors."""
    x = torch.linspace(-1, 2, N, dtype=torch.float64)
    member, errors = compressor("randomk(0.1)"), []
    for step in range(400):
        payload, _ = member.encode(x, None, Rng(step=step))
        errors.append(float((x - payload.decode()).square().sum() / x.square().sum()))
    errors = torch.tensor(errors, dtype=torch.float64)
    assert abs(float(errors.mean()) - 0.9) < 4 * float(errors.std()) / math.sqrt(len(errors))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_feedback_conserves_integers_exactly(name):
    """Integer gradients in float64 leave no rounding to excuse a difference."""
    member = ErrorFeedback(compressors(name, [0.01])[0])
    whole = torch.randint(-50, 51, (5, N), generator=torch.Generator().manual_seed(3)).double()
    state, sent = member.init(whole[0]), torch.zeros(N, dtype=torch.float64)
    for step, grad in enumerate(whole):
        payload, state = member.encode(grad, state, Rng(step=step))
        payload.add_to(sent)
    assert torch.equal(sent + state.residual, whole.sum(0))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_feedback_conserves_the_sum_over_workers_too(name):
    member = ErrorFeedback(compressors(name, [0.01])[0])
    whole = torch.randint(-50, 51, (2, 4, N), generator=torch.Generator().manual_seed(4)).double()
    states = [member.init(whole[worker, 0]) for worker in range(2)]
    sent = torch.zeros(2, N, dtype=torch.float64)
    for step in range(4):
        steps = simulate(
            [
                member.exchange(whole[worker, step], states[worker], Rng(step=step, worker=worker))
                for worker in range(2)
            ]
        )
        states = [each.state for each in steps]
        for worker, each in enumerate(steps):
            each.sent.add_to(sent[worker])
    for worker in range(2):
        assert torch.equal(sent[worker] + states[worker].residual, whole[worker].sum(0))


@pytest.mark.parametrize(
    "spec",
    [spec for spec in MEMBERS if spec.startswith(("topk", "thr", "dgc", "red", "gau", "sid"))],
)
def test_what_is_kept_is_a_top_set_whatever_the_unit_and_sign(spec):
    """min kept >= max dropped; factors of a power of two and a sign change select the same."""
    member = compressor(spec)
    x = torch.randn(N, generator=torch.Generator().manual_seed(1))
    chosen = []
    for factor in (1.0, 0.25, -1.0):
        payload, _ = member.encode(x * factor, member.init(x * factor), Rng())
        chosen.append(payload.indices.sort().values)
        dropped = x.abs().index_fill(0, payload.indices, -1)
        if payload.count:
            assert x[payload.indices].abs().min() >= dropped.max()
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


@pytest.mark.parametrize("ratio", RATIOS)
def test_top_k_and_random_k_keep_exactly_k(ratio):
    for name in ("topk", "randomk"):
        member = compressor(f"{name}({ratio})")
        payload, _ = member.encode(torch.ones(N), None, Rng())
        assert payload.count == max(1, round(ratio * N)) == member.target_count(N)


def test_the_hard_threshold_is_fixed_by_the_first_gradient():
    member = compressor("threshold(0.1)")
    x = torch.randn(N, generator=torch.Generator().manual_seed(2))
    state = member.init(x)
    counts = []
    for factor in (1.0, 0.0, 3.0):
        payload, state = member.encode(factor * x, state)
        counts.append(payload.count)
    assert counts[0] == 100
    assert counts[1] == 0
    assert counts[2] == int((3 * x.abs() > float(state)).sum()) > 300


def test_infinite_elements_at_calibration_do_not_raise_the_threshold():
    member = compressor("threshold(0.01)")
    x = torch.randn(N, generator=torch.Generator().manual_seed(2))
    broken = x.index_fill(0, torch.arange(50), torch.inf)
    assert member.init(broken) <= float(x.abs().max())
    assert member.encode(broken, member.init(broken))[0].count >= 50


def test_random_methods_ask_for_their_rng():
    for spec in ("randomk(0.1)", "dgc(0.1)"):
        with pytest.raises(ValueError, match="rng must be given to"):
            compressor(spec).encode(torch.ones(4), None)


def test_states_that_are_cloned_survive_the_call():
    member = compressor("ef(topk(0.01))")
    x = torch.linspace(-1, 1, N)
    _, state = member.encode(x, member.init(x))
    kept = state.clone()
    before = kept.residual.clone()
    member.encode(x, state)
    assert torch.equal(kept.residual, before)


def test_the_residual_does_not_keep_a_graph_alive():
    member = compressor("ef(topk(0.01))")
    x = torch.linspace(-1, 1, N, requires_grad=True)
    _, state = member.encode(x, member.init(x))
    assert not state.residual.requires_grad


def test_payload_bytes_are_what_the_wire_carries():
    """36 bytes of header; 4 + 4 a kept float32, 4 without indices, 2 an element as bfloat16."""
    x = torch.randn(N, generator=torch.Generator().manual_seed(1))
    bytes_of = {
        spec: compressor(spec).encode(x, None, Rng())[0].nbytes
        for spec in ("none", "bf16", "topk(0.1)", "randomk(0.1)")
    }
    assert bytes_of == {"none": 4036, "bf16": 2036, "topk(0.1)": 836, "randomk(0.1)": 436}
    half, _ = compressor("topk(0.1)").encode(x.bfloat16(), None)
    assert half.nbytes == 636
    assert from_bytes(half.to_bytes()).values.dtype == torch.bfloat16


def test_workers_share_the_random_mask_and_steps_do_not():
    member, x = compressor("randomk(0.1)"), torch.arange(N).double()
    first, other_worker, other_step = (
        member.encode(x, None, rng)[0].values
        for rng in (Rng(worker=0), Rng(worker=1), replace(Rng(), step=1))
    )
    assert torch.equal(first, other_worker)
    assert not torch.equal(first, other_step)
