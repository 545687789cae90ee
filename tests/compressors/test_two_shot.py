"""Two-shot exchanges and rings that requantise: conservation, bytes, errors, in float64."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from gradstats.compressors import Rng, compressor
from gradstats.compressors.methods.sign import ScaledSign
from gradstats.compressors.rounds import fused
from gradstats.compressors.wrappers.chunks import bounds
from gradstats.compressors.wrappers.ring import Ring
from gradstats.compressors.wrappers.two_shot import TwoShot, owned_by
from gradstats.exchange import simulate
from gradstats.exchange.counts import Traffic
from gradstats.payloads.base import Dense
from gradstats.testing.compressor_laws import LAWS

TEAMS = (1, 2, 3, 8)
DEPLOYED = ("mxfp8", "fp8", "nvfp4", "affine(4)", "eden", "qsgd", "sign")
SMALL = ("mxfp8", "fp8", "nvfp4", "mxfp4", "affine(4)")  # relative squared error below 0.05


def gradients(workers, numel, step=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 * step + workers)
    return list(torch.randn(workers, numel, generator=generator, dtype=torch.float64).to(dtype))


def exchanged(member, grads, states=None, step=0, ledgers=None):
    """One step of all workers, whose updates are equal to the bit."""
    states = states or [member.init(grad) for grad in grads]
    together = zip(grads, states, strict=True)
    steps = simulate(
        [
            member.exchange(grad, state, Rng(3, step, "", worker, len(grads)))
            for worker, (grad, state) in enumerate(together)
        ],
        ledgers,
    )
    for each in steps:
        assert torch.equal(each.update.nan_to_num(7.0), steps[0].update.nan_to_num(7.0))
    return steps


def mean_of(grads):
    return torch.stack(grads).double().mean(0)


def error(spec, grads):
    """‖ĝ - g‖²/‖g‖² of the update and the mean gradient."""
    mean = mean_of(grads)
    update = exchanged(compressor(spec), grads)[0].update.double()
    return float((update - mean).square().sum() / mean.square().sum())


def held_back(states):
    """What all workers hold back of the sum of the mean gradients, float64."""
    residual = mean_of([state.residual for state in states])
    return sum((owned.double() for state in states for owned in owned_by(state)), residual)


@pytest.mark.parametrize("workers", TEAMS)
@pytest.mark.parametrize("numel", [0, 1, 5, 33, 1000])
@pytest.mark.parametrize("wrapper", ["twoshot", "ring"])
def test_without_compression_it_is_the_all_reduce(wrapper, numel, workers):
    """Also where chunks are fewer than workers, and of an empty vector."""
    grads = gradients(workers, numel)
    update = exchanged(compressor(f"{wrapper}(none)"), grads)[0].update
    torch.testing.assert_close(update.double(), mean_of(grads), rtol=1e-6, atol=1e-6)
    reduced = exchanged(compressor("none"), grads)[0].update
    torch.testing.assert_close(update, reduced, rtol=1e-6, atol=1e-6)


def coded(code, vector, *where):
    """A vector after one encoding, float32."""
    state = code.init(vector)
    return code.encode(vector, state, Rng(3, 0, *where))[0].decode().float()


def two_shots_by_hand(code, grads):
    """Chunk by chunk, without an exchange."""
    n, update = len(grads), []
    for chunk, ends in enumerate(pairwise(bounds(grads[0].numel(), n))):
        mean = torch.zeros(ends[1] - ends[0])
        for worker, grad in enumerate(grads):
            mean += coded(code, grad[slice(*ends)], f", chunk {chunk}", worker, n) / n
        mean = mean.to(grads[0].dtype)  # the only rounding of 16 bits
        update.append(coded(code, mean, f", sum of chunk {chunk}", chunk, n))
    return torch.cat(update).to(grads[0].dtype)


def ring_by_hand(code, grads):
    """Chunk by chunk, from the worker after the owner to the owner."""
    n, update = len(grads), []
    for owner, ends in enumerate(pairwise(bounds(grads[0].numel(), n))):
        shares = [grads[(owner + hop) % n][slice(*ends)].double() / n for hop in range(1, n + 1)]
        passing = shares[0]
        for hop, share in enumerate(shares[1:]):
            sender = (owner + hop + 1) % n
            passing = share + coded(code, passing.float(), f", hop {hop}", sender, n)
        update.append(coded(code, passing.float(), ", mean", owner, n))
    return torch.cat(update)


@pytest.mark.parametrize("numel", [0, 5, 33, 300])
@pytest.mark.parametrize("inner", DEPLOYED)
def test_each_chunk_is_coded_as_if_it_were_alone(inner, numel):
    """Also where the last workers have no chunk."""
    grads, code = gradients(8, numel), compressor(inner)
    for wrapper, by_hand in (("twoshot", two_shots_by_hand), ("ring", ring_by_hand)):
        update = exchanged(compressor(f"{wrapper}({inner})"), grads)[0].update
        assert torch.equal(update, by_hand(code, grads)), wrapper


CONSERVING = ["ef(twoshot(mxfp4))", "ef(twoshot(sign))", "ef(twoshot(topk(0.1)))"]
CONSERVING += ["ef(twoshot(qsgd, second=bf16))", "ef(ring(nvfp4))", "ef(ring(sign))"]
CONSERVING += ["ef(warmup(twoshot(topk(0.1)), steps=1))"]


@pytest.mark.parametrize("workers", TEAMS)
@pytest.mark.parametrize("spec", CONSERVING)
def test_updates_and_residuals_add_up_to_the_gradients(spec, workers):
    member, states, total = compressor(spec), None, 0.0
    for step in range(5):
        grads = gradients(workers, 300, step, torch.float64)
        steps = exchanged(member, grads, states, step)
        states = [each.state for each in steps]
        total = total + mean_of(grads) - steps[0].update
    torch.testing.assert_close(held_back(states), total, rtol=0, atol=1e-12)
    assert float(total.norm()) > 0.1, "something is held back"


@pytest.mark.parametrize("after", [1, 3, 8])
@pytest.mark.parametrize("spec", ["ef(twoshot(sign))", "ef(ring(sign))"])
def test_nothing_is_lost_when_the_number_of_workers_changes(spec, after):
    member = compressor(spec)
    steps = exchanged(member, gradients(4, 300, 0, torch.float64))
    states = [each.state for each in steps]
    before = held_back(states)
    states = [member.resharded(states, worker, after) for worker in range(after)]
    torch.testing.assert_close(held_back(states), before, rtol=0, atol=1e-12)
    grads = gradients(after, 300, 1, torch.float64)
    steps = exchanged(member, grads, states, 1)
    total = before + mean_of(grads) - steps[0].update
    left = held_back([each.state for each in steps])
    torch.testing.assert_close(left, total, rtol=0, atol=1e-12)


def test_a_residual_whose_chunk_another_worker_owns_is_not_lost():
    """In a bucket of other parameters the chunks begin elsewhere."""
    member, total, states = compressor("ef(twoshot(sign))"), 0.0, None
    for step in range(4):
        grads = gradients(3, 300, step, torch.float64)
        steps = exchanged(member, grads, states, step)
        states = [each.state for each in steps]
        total = total + mean_of(grads) - steps[0].update
        owned = [state.inner.owned for state in states]
        for worker, state in enumerate(states):
            state.inner.owned = owned[(worker + 1) % 3]
    torch.testing.assert_close(held_back(states), total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("inner", DEPLOYED)
@pytest.mark.slow
def test_a_worker_sends_two_codes_of_all_chunks_but_one(inner, workers):
    """(n-1)/n (c + c₂) bytes; 65,536 elements per chunk fill the rotated blocks of eden."""
    grads = gradients(workers, workers * 65_536)
    code = compressor(inner)
    one = code.encode(grads[0], code.init(grads[0]), Rng())[0].nbytes
    for spec, both in (
        (f"twoshot({inner})", 2 * one),
        (f"twoshot({inner}, second=bf16)", one + 2 * grads[0].numel()),
        (f"ring({inner})", 2 * one),
    ):
        ledgers = [Traffic() for _ in grads]
        exchanged(compressor(spec), grads, ledgers=ledgers)
        expected = (workers - 1) / workers * both
        assert [each.wire for each in ledgers] == pytest.approx([expected] * workers, rel=0.01)


def test_eden_pads_each_chunk_to_its_rotated_blocks():
    """B⌈m/B⌉ elements for a chunk of m, B = 2^⌈log₂(m/16)⌉ <= 4096: here 13,312 for 12,512."""
    numel, workers = 100_000, 8
    grads, ledgers = gradients(workers, numel), [Traffic() for _ in range(workers)]
    exchanged(compressor("twoshot(eden)"), grads, ledgers=ledgers)
    chunk = bounds(numel, workers)[1]
    block = 2 ** math.ceil(math.log2(chunk / 16))
    blocks = math.ceil(chunk / block)
    nbytes = blocks * (block * 2 / 8 + 4)
    assert (chunk, blocks * block) == (12_512, 13_312)
    assert ledgers[0].wire == pytest.approx(2 * (workers - 1) * nbytes, rel=0.03)


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("inner", SMALL)
@pytest.mark.slow
def test_errors_of_uncorrelated_workers_add_up(inner, workers):
    """Of one code e, of a gather e, of two shots 2e, of a ring (n+1)e/2.

    Grids of floats repeat with a factor of 2, so that the errors are not quite uncorrelated.
    """
    grads = gradients(workers, 100_000)
    one = error(inner, grads[:1])
    assert 0 < one < 0.05
    assert error(inner, grads) == pytest.approx(one, rel=0.03)
    assert error(f"twoshot({inner})", grads) == pytest.approx(2 * one, rel=0.1)
    assert error(f"ring({inner})", grads) == pytest.approx((workers + 1) / 2 * one, rel=0.1)


@pytest.mark.parametrize(
    ("spec", "expected"), [("sign", 0.36), ("twoshot(sign)", 0.62), ("ring(sign)", 0.68)]
)
def test_large_errors_are_measured(spec, expected):
    """1 - 2/π = 0.36 of the sign of a Gaussian; on 8 workers no law gives the other two."""
    assert error(spec, gradients(8, 100_000)) == pytest.approx(expected, abs=0.015)


def test_sums_of_16_bits_are_rounded_once():
    """The owner adds in float32, where an all-reduce of bfloat16 rounds at every addition."""
    grads = gradients(8, 10_000, dtype=torch.bfloat16)
    rounded = mean_of(grads).to(torch.bfloat16)
    for spec in ("twoshot(none)", "twoshot(bf16)"):
        assert torch.equal(exchanged(compressor(spec), grads)[0].update, rounded), spec
    reduced = exchanged(compressor("none"), grads)[0].update
    assert (reduced != rounded).double().mean() > 0.3
    update = exchanged(compressor("twoshot(fp8)"), grads)[0].update
    assert torch.equal(update, two_shots_by_hand(compressor("fp8"), grads))


def test_sums_over_three_workers_are_rounded_in_float32_before():
    """1/3 is no float: n products and sums lose 2⁻²⁴ each, then one rounding to 8 bits 2⁻⁸."""
    grads = gradients(3, 10_000, dtype=torch.bfloat16)
    exact, size = mean_of(grads), mean_of([grad.abs() for grad in grads])
    limit = 2.0**-8 * exact.abs() + 7 * 2.0**-24 * size
    assert ((exchanged(compressor("twoshot(none)"), grads)[0].update - exact).abs() <= limit).all()
    assert ((exchanged(compressor("none"), grads)[0].update - exact).abs() > limit).any()


@pytest.mark.parametrize("workers", TEAMS)
@pytest.mark.parametrize("inner", ["randomk(0.1)", "randomk(0.1) | bf16", "randomk(0.1) | qsgd"])
def test_sums_are_sent_at_the_indices_that_were_drawn(inner, workers):
    grads, code = gradients(workers, 3000), compressor(inner)
    update = exchanged(compressor(f"twoshot({inner})"), grads)[0].update
    for chunk, ends in enumerate(pairwise(bounds(3000, workers))):
        part = grads[0][slice(*ends)]
        drawn = code.encode(part, None, Rng(3, 0, f", chunk {chunk}", 0, workers))[0].indices
        others = update[slice(*ends)].clone()
        others[drawn] = 0
        assert not others.any()
        if "qsgd" not in inner:
            error = (update - mean_of(grads))[slice(*ends)][drawn].abs()
            size = mean_of([grad.abs() for grad in grads])[slice(*ends)][drawn]
            assert (error <= 2.02 * 2.0**-8 * size).all(), "each code rounds once"


def test_scaled_subsets_stay_independent_and_so_unbiased():
    """100 shots at 1/4 of the elements, twice: the variance of one is 4² - 1."""
    grads, member = [torch.ones(500)] * 2, compressor("twoshot(randomk(0.25, scaled=True))")
    updates = [exchanged(member, grads, step=step)[0].update for step in range(100)]
    assert {0.0, 16.0} == set(torch.stack(updates).unique().tolist())
    standard_error = (15 / 100 / 500) ** 0.5
    assert abs(torch.stack(updates).mean() - 1) < 5 * standard_error


@pytest.mark.parametrize("spec", ["twoshot(none)", "twoshot(mxfp8)", "ring(nvfp4)"])
def test_parameters_of_two_dtypes_are_exchanged_as_one(spec):
    member, dtypes = compressor(spec), (torch.float32, torch.bfloat16, torch.float32)
    kinds = [gradients(3, 100 + 40 * i, i, dtype) for i, dtype in enumerate(dtypes)]

    def of(worker):
        rng = Rng(3, 0, "", worker, 3)
        return [member.exchange(grads[worker], member.init(grads[worker]), rng) for grads in kinds]

    for steps in simulate([fused(of(worker)) for worker in range(3)]):
        for grads, step in zip(kinds, steps, strict=True):
            assert step.update.dtype == grads[0].dtype
            assert torch.equal(step.update, exchanged(member, grads)[0].update)


@pytest.mark.parametrize("spec", ["twoshot(mxfp8)", "twoshot(none)", "ring(nvfp4)", "ring(sign)"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_one_worker_broke_all_get(spec, value):
    grads = gradients(4, 500)
    grads[2][77] = value
    steps = exchanged(compressor(f"ef({spec})"), grads)
    assert not steps[0].update[77].isfinite()
    for each in steps:
        assert each.state.residual.isfinite().all(), "it is delivered once"


@pytest.mark.parametrize("memory", ["lowpass", "velocity", "ef21"])
def test_other_memories_hold_back_the_errors_of_sums_too(memory):
    member = compressor(f"{memory}(twoshot(sign))")
    steps = exchanged(member, gradients(4, 200))
    owned = sum(map(torch.Tensor.abs, owned_by([each.state for each in steps])))
    assert owned.min() > 0


def test_without_a_memory_nothing_is_held_back():
    steps = exchanged(compressor("twoshot(sign)"), gradients(4, 200))
    assert owned_by([each.state for each in steps]) == []


class Forgets(TwoShot):
    """Its owners keep nothing of what the second code loses."""

    def init_under_memory(self, grad):
        return self.init(grad)


@dataclass(frozen=True)
class Uncounted(Ring):
    """Each worker counts its gradient as sent, whatever its codes have lost."""

    def exchange(self, grad, state, rng=None):
        step = yield from super().exchange(grad, state, rng)
        return replace(step, sent=Dense(self.flattened(grad)))


@pytest.mark.parametrize("broken", [Forgets, Uncounted])
def test_the_law_suite_rejects_what_loses_something(broken):
    law = next(law for law in LAWS if law.name == "several-workers")
    assert next(law.broken(broken(ScaledSign()), Rng()), None)


REFUSED = {
    "twoshot(ef(mxfp8))": r"as in ef\(twoshot\(mxfp8\)\), got ef\(mxfp8\) inside",
    "ring(velocity(sign))": r"as in velocity\(ring\(sign\)\)",
    "twoshot(ef(mxfp8, gamma=0.7))": r"as in ef\(twoshot\(mxfp8\), gamma=0.7\), got ef\(mxfp8, ",
    "twoshot(ef(mxfp8), second=bf16)": r"as in ef\(twoshot\(mxfp8, second=bf16\)\), got",
    "twoshot(mxfp8, second=ef(sign))": r"as in ef\(twoshot\(mxfp8, second=sign\)\), got ef\(sign",
    "twoshot(powersgd)": "compressor of twoshot must be a method of vectors.*got powersgd",
    "ring(svd)": "compressor of ring must be a method of vectors.*got svd",
    "twoshot(mxfp8, second=powersgd)": "second of twoshot must be a method of vectors",
    "twoshot(adaquant(qsgd))": "compressor of twoshot must be .* which needs the gradient alone",
    "twoshot(adacomp)": "must be a method without a memory.*got adacomp",
    "twoshot(twoshot(mxfp8))": r"that sends one message, got twoshot\(mxfp8\)",
    "ring(twoshot(mxfp8))": "compressor of ring must be a method that sends one message",
    "twoshot(clt-k(0.1))": "that sends one message",
    "twoshot(per-parameter(mxfp8))": "that sends one message",
    "twoshot(warmup(topk(0.1)))": "that sends one message",
    "ring(topk(0.1))": r"that sends every element.*; twoshot\(topk\(0.1\)\) works",
    "topk(0.1) | twoshot(mxfp8)": "a stage must send one message",
    "twoshot(mxfp8) | ans": "a stage must send one message",
    "warmup(twoshot(mxfp8))": "must have a ratio",
    "twoshot(mxfp8, second=5)": "second of twoshot must be a compressor, got 5",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_combined_is_refused_with_the_reason(spec):
    with pytest.raises(ValueError, match=REFUSED[spec]):
        compressor(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "per-parameter(twoshot(mxfp8))",
        "ef(per-parameter(ring(mxfp8)))",
        "ef(warmup(twoshot(topk(0.1), second=bf16)))",
        "twoshot(topk(0.1) | qsgd)",
        "twoshot(qsgd | ans)",
    ],
)
def test_what_can_be_combined_is_read_from_its_text(spec):
    assert str(compressor(spec)) == spec


def test_a_warm_up_sets_the_ratio_of_the_first_code():
    member = compressor("warmup(twoshot(topk(0.01), second=none), stages=1, steps=1)")
    grad = gradients(1, 10_000)[0]
    sent, state = member.encode(grad, member.init(grad))
    assert (sent.count, member.encode(grad, state)[0].count) == (1000, 100)
