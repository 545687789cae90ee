"""What owners of chunks hold back of sums, under every memory: delivered once, never lost."""

from itertools import pairwise

import pytest
import torch

from gradstats.compressors import Part, Rng, compressor
from gradstats.compressors.wrappers.chunks import bounds
from gradstats.compressors.wrappers.per_parameter import in_parts
from gradstats.compressors.wrappers.two_shot import owned_by
from gradstats.exchange import simulate

NUMEL = 300
MOMENTUM, GAMMA, BETA = 0.5, 0.7, 0.1


def gradients(workers, step=0, dtype=torch.float64, numel=NUMEL):
    generator = torch.Generator().manual_seed(100 * step + workers)
    return list(torch.randn(workers, numel, generator=generator, dtype=torch.float64).to(dtype))


def exchanged(member, grads, states=None, step=0):
    """The update of all workers, and their states."""
    states = states or [member.init(grad) for grad in grads]
    pairs = enumerate(zip(grads, states, strict=True))
    rngs = [Rng(3, step, "", worker, len(grads)) for worker in range(len(grads))]
    steps = simulate([member.exchange(*pair, rngs[worker]) for worker, pair in pairs])
    return steps[0].update, [each.state for each in steps]


def mean(tensors):
    return torch.stack(list(tensors)).double().mean(0)


def owned(states):
    """The sum over the owners, float64."""
    return sum(each.double() for state in states for each in owned_by(state))


def with_owners_moved(states):
    """Each worker has what the one after it owned."""
    held = [state.inner.owned for state in states]
    for worker, state in enumerate(states):
        state.inner.owned = held[(worker + 1) % len(states)]
    return states


def of_ef(gamma):
    """Mean of what was sent, by e' = g + γe - sent."""

    def sent(grads, before, after):
        waiting, left = (mean(s.residual for s in states) for states in (before, after))
        return mean(grads) + gamma * waiting - left

    return sent


def of_low_pass(grads, before, after):
    """By e' = (1 - β)e + β(g + e - sent)."""
    waiting, left = (mean(s.residual for s in states) for states in (before, after))
    return mean(grads) + waiting - (left - (1 - BETA) * waiting) / BETA


def of_velocity(grads, before, after):
    """By u = m u + g and v' = v + u - sent."""
    waiting, left = (mean(s.residual for s in states) for states in (before, after))
    return waiting + MOMENTUM * mean(s.momentum for s in before) + mean(grads) - left


def of_ef21(grads, before, after):
    """By h' = h + sent."""
    return mean(s.own for s in after) - mean(s.own for s in before)


SENT = {
    "ef({})": of_ef(1.0),
    f"ef({{}}, gamma={GAMMA})": of_ef(GAMMA),
    f"lowpass({{}}, beta={BETA})": of_low_pass,
    f"velocity({{}}, momentum={MOMENTUM})": of_velocity,
    "ef21({})": of_ef21,
}


@pytest.mark.parametrize("inner", ["sign", "topk(0.1)", "qsgd, second=bf16"])
@pytest.mark.parametrize("memory", SENT)
def test_what_is_sent_is_delivered_or_owned_whoever_owns_it(memory, inner):
    """Update + owned after - owned before = mean of what each memory counts as sent."""
    member = compressor(memory.format(f"twoshot({inner})"))
    states = [member.init(grad) for grad in gradients(3)]
    starts = list(pairwise(bounds(NUMEL, 3)))
    for step in range(5):
        grads, before = gradients(3, step), [state.clone() for state in states]
        update, states = exchanged(member, grads, states, step)
        if memory == "ef21({})":
            update = update - before[0].mean
        delivered = update + owned(states) - owned(before)
        sent = SENT[memory](grads, before, states)
        torch.testing.assert_close(delivered, sent, rtol=0, atol=1e-12)
        for (start, end), state in zip(starts, states, strict=True):
            assert not state.inner.owned[:start].any(), "delivered once"
            assert not state.inner.owned[end:].any(), "delivered once"
        assert owned(states).norm() > 0.01
        states = with_owners_moved(states)


@pytest.mark.parametrize("memory", [each for each in SENT if each != "ef21({})"])
def test_what_a_former_owner_holds_back_is_delivered_once(memory):
    member, zeros = compressor(memory.format("twoshot(none)")), [torch.zeros(NUMEL)] * 3
    states, held = [member.init(grad) for grad in zeros], torch.zeros(NUMEL)
    held[200:] = 1.0  # worker 0 owns the first 128 elements
    states[0].inner.owned.copy_(held)
    for step, expected in enumerate((held, *zeros)):
        update, states = exchanged(member, zeros, states, step)
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-6)
        assert not owned(states).any()
        assert mean(state.residual for state in states).abs().max() < 1e-6


def assert_known(states):
    """The mean of all h is what the receivers have, and what owners hold back of it."""
    h = mean(state.own for state in states)
    torch.testing.assert_close(states[0].mean + owned(states), h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("after", [1, 2, 3, 8])
@pytest.mark.parametrize("inner", ["sign", "topk(0.1)"])
def test_estimates_of_gradients_add_up_when_the_number_of_workers_changes(inner, after):
    member, states = compressor(f"ef21(twoshot({inner}))"), None
    for step in range(4):
        _, states = exchanged(member, gradients(4, step), states, step)
        assert_known(states)
    assert owned(states).norm() > 0.1
    known = states[0].mean
    states = [member.resharded(states, worker, after) for worker in range(after)]
    assert_known(states)
    assert all(torch.equal(state.mean, known) for state in states)
    for step in range(4, 7):
        _, states = exchanged(member, gradients(after, step), states, step)
        assert_known(states)


@pytest.mark.parametrize("moved", [False, True])
def test_estimates_of_gradients_add_up_after_a_broken_step(moved):
    member, states = compressor("ef21(twoshot(topk(0.1)))"), None
    for step in range(6):
        grads = gradients(3, step)
        if step == 3:
            grads[1][[5, 77, 280]] = torch.tensor([torch.nan, torch.inf, torch.nan]).double()
        _, states = exchanged(member, grads, states, step)
        assert_known(states)
        if moved:
            states = with_owners_moved(states)
    assert owned(states).isfinite().all()


def test_estimates_of_gradients_add_up_after_an_uncompressed_step():
    member = compressor("ef21(twoshot(sign))")
    _, states = exchanged(member, gradients(3))
    assert owned(states).norm() > 0.1
    grads = gradients(3, 1)
    steps = simulate([member.dense(*pair) for pair in zip(grads, states, strict=True)])
    states = [step.state for step in steps]
    assert_known(states)
    torch.testing.assert_close(states[0].mean, mean(grads))
    _, states = exchanged(member, gradients(3, 2), states, 2)
    assert_known(states)


PARTS = (Part("a", 400), Part("b", 40, dense=True), Part("c", 200))


@pytest.mark.parametrize("after", [1, 2, 5])
def test_each_parameter_gives_its_residuals_to_new_owners(after):
    member = in_parts(compressor("ef(twoshot(sign))"), PARTS)
    grads = gradients(3, numel=640)
    _, states = exchanged(member, grads)

    def held_back(states):
        residuals = torch.split(mean(s.residual for s in states), [400, 40, 200])
        of_parts = [sum(s.inner[part].owned for s in states) for part in (0, 2)]
        return residuals[0] + of_parts[0], residuals[1], residuals[2] + of_parts[1]

    before = held_back(states)
    states = [member.resharded(states, worker, after) for worker in range(after)]
    torch.testing.assert_close(held_back(states), before, rtol=0, atol=1e-12)
    for part, numel in ((0, 400), (2, 200)):
        ends = pairwise(bounds(numel, after))
        for state, (start, end) in zip(states, ends, strict=True):
            assert not state.inner[part].owned[:start].any()
            assert not state.inner[part].owned[end:].any()


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_owners_of_16_bit_gradients_keep_float32(dtype):
    """The first code loses nothing here: g is exact, e is 0, and only sums are rounded.

    n products and sums, the owned part and the difference, each by 2⁻²⁴ of a magnitude.
    """
    member, states, total = compressor("ef(twoshot(none, second=sign))"), None, 0.0
    limit = torch.zeros(NUMEL, dtype=torch.float64)
    for step in range(6):
        grads = gradients(3, step, dtype)
        before = owned(states).abs() if states else 0
        update, states = exchanged(member, grads, states, step)
        assert not any(state.residual.any() for state in states)
        total = total + mean(grads) - update.double()
        largest = mean(grad.abs() for grad in grads) + before + owned(states).abs()
        limit += (2 * 3 + 2) * 2.0**-24 * (largest + update.double().abs())
    assert {state.inner.owned.dtype for state in states} == {torch.float32}
    assert ((owned(states) - total).abs() <= limit).all()
    assert owned(states).norm() > 1


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("inner", ["sign", "mxfp4", "topk(0.1)"])
def test_16_bit_residuals_lose_their_own_roundings_only(inner, dtype, moved):
    """v = g + e and e' = v - sent, each rounded by half an epsilon; the rest is float32."""
    member, states, total = compressor(f"ef(twoshot({inner}))"), None, 0.0
    limit, half = torch.zeros(NUMEL, dtype=torch.float64), torch.finfo(dtype).eps / 2
    for step in range(6):
        grads = gradients(3, step, dtype)
        waiting = [s.residual for s in states or []] or [torch.zeros(NUMEL)] * 3
        update, states = exchanged(member, grads, states, step)
        total = total + mean(grads) - update.double()
        encoded = mean(g.abs().double() + e.abs() for g, e in zip(grads, waiting, strict=True))
        left = mean(state.residual.abs() for state in states)
        limit += half * (encoded + left) + 16 * 2.0**-24 * (encoded + left + update.abs() + 1)
        states = with_owners_moved(states) if moved else states
    held = mean(state.residual for state in states) + owned(states)
    assert ((held - total).abs() <= limit).all()
