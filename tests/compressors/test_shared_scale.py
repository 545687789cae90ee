"""Methods whose workers agree before they send: sums of integers, places in turn, sketches."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from gradstats.compressors import AllReduce, Rng, compressor
from gradstats.compressors.rounds import alone
from gradstats.compressors.states import divided, joined
from gradstats.exchange import simulate
from gradstats.exchange.counts import Traffic
from gradstats.exchange.reducing import incoming, outgoing
from gradstats.payloads.codebooks import CLIP, Lattice

D = 4000


def gradient(worker, d=D):
    return torch.randn(d, generator=torch.Generator().manual_seed(worker)) * (1 + worker)


def exchanged(spec, workers, step=0, states=None, grads=None):
    """The steps of all workers, and the ledger of the first."""
    member = compressor(spec)
    grads = [gradient(worker) for worker in range(workers)] if grads is None else grads
    states = [member.init(grad) for grad in grads] if states is None else states
    ledgers = [Traffic() for _ in grads]
    steps = simulate(
        [
            member.exchange(grad, state, Rng(0, step, "", worker, workers))
            for worker, (grad, state) in enumerate(zip(grads, states, strict=True))
        ],
        ledgers,
    )
    return steps, ledgers[0]


@pytest.mark.parametrize(
    "levels", [2, 3, 4, 5, 15, 16, 31, 33, 61, 255, 511, 5000, 40_000, 70_000]
)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 16, 100])
def test_sums_of_integers_are_those_of_their_digits(levels, workers):
    rng = np.random.default_rng(levels + workers)
    for numel in (0, 1, 7, 64, 1001):
        integers = rng.integers(0, levels, (workers, numel))
        integers[:, : numel // 3] = levels - 1  # the largest sums there are
        requests = [AllReduce(torch.from_numpy(row), "sum", levels) for row in integers]
        sent = [outgoing(request, workers) for request in requests]
        assert all(tensor.dtype in (torch.int64, torch.int32) for tensor in sent)
        total = sum(sent[1:], sent[0].clone())
        assert incoming(total, requests[0], workers).tolist() == integers.sum(0).tolist()
        mean = incoming(total, AllReduce(requests[0].tensor, "mean", levels), workers)
        np.testing.assert_allclose(mean.numpy(), integers.sum(0) / workers, rtol=1e-6)


@pytest.mark.parametrize(
    ("levels", "workers", "bits"),
    [(3, 2, 64 / 27), (3, 8, 64 / 15), (15, 2, 64 / 13), (15, 4, 6.4)],
)
def test_sums_take_as_many_digits_as_a_word_holds(levels, workers, bits):
    request = AllReduce(torch.zeros(27 * 15 * 13 * 10, dtype=torch.int64), "sum", levels)
    sent = outgoing(request, workers)
    assert 8 * sent.nbytes / request.tensor.numel() == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "sum_bits"), [("qsgd-shared", 6), ("terngrad-shared", 4), ("thc", 7), ("intsgd", 0)]
)
def test_the_width_of_sums_is_told(spec, sum_bits):
    """4 workers: sums up to 4 · 14, 4 · 2, 4 · 30; IntSGD begins with floats."""
    _, ledger = exchanged(spec, 4)
    assert ledger.sum_bits == sum_bits


@pytest.mark.parametrize(
    "spec", ["qsgd-shared(bucket=128)", "qsgd-shared(norm=l2)", "terngrad-shared(0)"]
)
def test_shared_scales_round_to_the_two_neighbours_and_keep_the_mean(spec):
    workers = 3
    mean = torch.stack([gradient(worker) for worker in range(workers)]).mean(0)
    updates = torch.stack([exchanged(spec, workers, step)[0][0].update for step in range(200)])
    off = updates.double().mean(0) - mean
    spread = updates.double().std(0) / 200**0.5
    assert float((off / spread.clamp_min(1e-12)).square().mean()) == pytest.approx(1, abs=0.15)


def test_shared_qsgd_rounds_to_multiples_of_the_largest_norm():
    workers, bucket, s = 2, 512, 7
    steps, _ = exchanged("qsgd-shared", workers)
    grads = torch.stack([gradient(worker) for worker in range(workers)])
    for start in range(0, D, bucket):
        scale = float(grads[:, start : start + bucket].abs().max())
        for step, grad in zip(steps, grads, strict=True):
            sent = step.sent.decode()[start : start + bucket]
            multiples = sent * s / scale
            torch.testing.assert_close(multiples, multiples.round(), rtol=0, atol=1e-5)
            assert float((sent - grad[start : start + bucket]).abs().max()) <= scale / s * 1.0001


@pytest.mark.parametrize(("bits", "grid"), [(1, 3), (2, 5), (2, 6), (3, 9)])
def test_thcs_levels_are_the_best_of_all_subsets(bits, grid):
    """Brute force, with the loss integrated numerically."""

    def lost(low, high):
        return quad(lambda x: (x - low) * (high - x) * norm.pdf(x), low, high)[0]

    points = CLIP * (2 * np.arange(grid + 1) / grid - 1)
    subsets = itertools.combinations(range(1, grid), (1 << bits) - 2)
    losses = {
        (0, *inner, grid): sum(
            lost(points[a], points[b]) for a, b in itertools.pairwise((0, *inner, grid))
        )
        for inner in subsets
    }
    found = Lattice(bits, grid).integers()
    assert losses[tuple(found.tolist())] == pytest.approx(min(losses.values()), rel=1e-9)


def test_thc_loses_what_a_clipped_normal_law_loses():
    """One worker: NMSE = E[(x - clip x)²] + what rounding at random loses."""
    z = Lattice(4, 30).integers().astype(float)
    levels = CLIP * (2 * z / 30 - 1)
    rounding = sum(
        quad(lambda x, a=a, b=b: (x - a) * (b - x) * norm.pdf(x), a, b)[0]
        for a, b in itertools.pairwise(levels)
    )
    clipping = 2 * quad(lambda x: (x - CLIP) ** 2 * norm.pdf(x), CLIP, 12)[0]
    grad = gradient(0, 1 << 16)
    (step,), _ = exchanged("thc", 1, grads=[grad])
    nmse = float((step.update - grad).square().sum() / grad.square().sum())
    assert nmse == pytest.approx(rounding + clipping, rel=0.03)


def test_thc_brings_what_was_clipped_by_feedback():
    member = compressor("ef(thc)")
    grad = gradient(0)
    state, total = member.init(grad), torch.zeros(D)
    for step in range(60):
        payload, state = member.encode(grad, state, Rng(step=step))
        payload.add_to(total)
    torch.testing.assert_close(total + state.residual, 60 * grad, rtol=1e-4, atol=1e-3)
    assert float(state.residual.norm() / grad.norm()) < 1


def test_intsgd_sets_its_step_by_the_updates_before():
    workers, bits = 4, 8
    member = compressor("intsgd")
    grads = [gradient(worker) for worker in range(workers)]
    mean = torch.stack(grads).mean(0)
    steps, ledger = exchanged("intsgd", workers, grads=grads)
    torch.testing.assert_close(steps[0].update, mean)
    assert ledger.nbytes == 4 * D, "the first step is exact"
    r = float(mean.double().square().mean())
    assert steps[0].state == pytest.approx(r)
    states = [step.state for step in steps]
    alpha = (1 / (2 * workers * r)) ** 0.5
    steps, ledger = exchanged("intsgd", workers, 1, states, grads)
    assert 8 * ledger.nbytes / D == pytest.approx(bits, rel=0.01)
    limit = 127 // workers
    for step, grad in zip(steps, grads, strict=True):
        integers = step.sent.decode().double() * alpha
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
        assert float(integers.abs().max()) <= limit + 1e-3
        inside = (grad.double() * alpha).abs() < limit - 1
        assert float((integers - grad.double() * alpha)[inside].abs().max()) <= 1.001
    after = 0.9 * r + 0.1 * float(steps[0].update.double().square().mean())
    assert steps[0].state == pytest.approx(after)
    assert member.init(grads[0]) == 0


def test_clt_k_lets_the_workers_choose_in_turn():
    workers = 3
    grads = [gradient(worker) for worker in range(workers)]
    for step in range(5):
        steps, ledger = exchanged("clt-k(0.01)", workers, step)
        leader = grads[step % workers]
        places = leader.abs().topk(40).indices.sort().values
        expected = torch.zeros(D)
        expected[places] = torch.stack(grads).mean(0)[places]
        for each in steps:
            torch.testing.assert_close(each.update, expected)
        assert ledger.volumes["all_reduce"].nbytes == 4 * 40
        assert (ledger.volumes["broadcast"].nbytes > 0) == (step % workers == 0)


def test_lowpass_is_scalecoms_filter():
    grads = [gradient(worker).double() for worker in range(8)]
    member = compressor("lowpass(topk(0.01), beta=0.3)")
    state, memory = member.init(grads[0]), torch.zeros(D, dtype=torch.float64)
    for grad in grads:
        payload, state = member.encode(grad, state)
        waiting = memory + grad
        sent = torch.zeros_like(waiting)
        places = waiting.abs().topk(40).indices
        sent[places] = waiting[places]
        torch.testing.assert_close(payload.decode(), sent)
        memory = 0.7 * memory + 0.3 * (waiting - sent)
        torch.testing.assert_close(state.residual, memory)


def test_lowpass_of_beta_one_is_error_feedback():
    plain, filtered = compressor("ef(topk(0.01))"), compressor("lowpass(topk(0.01), beta=1)")
    states = [member.init(gradient(0)) for member in (plain, filtered)]
    for worker in range(4):
        sent = []
        for i, member in enumerate((plain, filtered)):
            payload, states[i] = member.encode(gradient(worker), states[i])
            sent.append(payload.decode())
        assert torch.equal(*sent)


@pytest.mark.parametrize(
    ("rows", "estimate", "expected", "tolerance"),
    [(1, "mean", 5.0, 0.06), (5, "mean", 1.0, 0.06), (5, "median", 1.27, 0.06)],
)
def test_count_sketch_loses_what_theory_says(rows, estimate, expected, tolerance):
    """D = 20,000 in rows of 4,000: (d - 1)/(C R) for the mean; the median was measured."""
    grad = gradient(0, 20_000)
    member = compressor(f"count-sketch({rows / 5}, rows={rows}, estimate={estimate})")
    nmse = [
        float((member.encode(grad, None, Rng(step=step))[0].decode() - grad).square().sum())
        / float(grad.square().sum())
        for step in range(12)
    ]
    assert np.mean(nmse) == pytest.approx(expected, rel=tolerance)


def test_count_sketch_is_linear():
    steps, _ = exchanged("count-sketch(estimate=mean)", 3)
    mean = torch.stack([gradient(worker) for worker in range(3)]).mean(0)
    payload, _ = compressor("count-sketch(estimate=mean)").encode(mean, None, Rng())
    torch.testing.assert_close(steps[0].update, payload.decode(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimate", ["mean", "median"])
def test_an_element_alone_is_itself_in_every_row(estimate):
    grad = torch.zeros(D)
    grad[777] = -50.0
    payload, _ = compressor(f"count-sketch(estimate={estimate})").encode(grad, None, Rng())
    assert float(payload.decode()[777]) == -50


def test_a_heavy_element_is_found_in_a_sketch():
    grad = torch.zeros(D)
    grad[777] = -50.0
    payload, _ = compressor("count-sketch").encode(grad + gradient(0) * 0.01, None, Rng())
    assert int(payload.decode().abs().argmax()) == 777
    assert float(payload.decode()[777]) == pytest.approx(-50, rel=0.02)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("thc(9)", "bits"),
        ("thc(4, grid=14)", "grid"),
        ("intsgd(1)", "bits"),
        ("intsgd(beta=1.0)", "beta"),
        ("count-sketch(0)", "share"),
        ("count-sketch(rows=4)", "odd"),
        ("count-sketch(rows=65)", "rows"),
        ("count-sketch(estimate=mode)", "estimate"),
        ("lowpass(topk(0.1), beta=0)", "beta"),
        ("qsgd-shared(1)", "bits"),
        ("terngrad-shared(-1)", "clip"),
        ("clt-k(0)", "ratio"),
        ("powersgd | qsgd", "one message"),
        ("topk(0.1) | thc", "one message"),
    ],
)
def test_settings_out_of_range_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        compressor(spec)


@pytest.mark.parametrize("spec", ["intsgd", "qsgd-shared", "thc", "terngrad-shared", "powersgd"])
def test_a_nan_on_one_worker_is_everyones_and_only_then(spec):
    workers, member = 3, compressor(spec)
    grads = [gradient(worker).view(50, -1) for worker in range(workers)]
    states = [member.init(grads[0]) for _ in range(workers)]
    for step in range(4):
        given = [grad.clone() for grad in grads]
        if step == 2:
            given[1][0, 3] = torch.nan
        exchanges = [
            member.exchange(grad, state, Rng(0, step, "w", worker, workers))
            for worker, (grad, state) in enumerate(zip(given, states, strict=True))
        ]
        steps = simulate(exchanges)
        states = [each.state for each in steps]
        first, *others = (each.update for each in steps)
        assert all(torch.equal(first.nan_to_num(), each.nan_to_num()) for each in others)
        assert bool(first.isfinite().all()) == (step != 2)
        assert all(str(state) == str(states[0]) for state in states)


def test_intsgd_finds_its_step_again_where_buckets_are_divided():
    """Of a part the error is what it is of the whole: r is a mean over the elements."""
    member, grad = compressor("intsgd"), gradient(0)

    def error(vector, state):
        step = alone(member.exchange(vector, state, Rng(0, 1)))
        return float((step.update - vector).norm() / vector.norm())

    state = alone(member.exchange(grad, member.init(grad), Rng(0, 0))).state
    numels = [D // 16, D - D // 16]
    whole, parts = error(grad, state), divided(state, numels)
    for part, own in zip(grad.split(numels), parts, strict=True):
        assert error(part, own) == pytest.approx(whole, rel=0.2)
    assert error(grad, joined(parts, numels)) == whole
    big = alone(member.exchange(3 * grad[: numels[0]], member.init(grad), Rng(0, 0))).state
    mean = joined([big, parts[1]], numels)
    assert float(mean) == pytest.approx((float(big) * numels[0] + float(parts[1]) * numels[1]) / D)


def test_a_threshold_waits_for_a_gradient_that_has_one():
    member, grad = compressor("threshold(0.1)"), gradient(0)
    few = torch.where(torch.arange(D) < 50, grad, 0.0)  # fewer than are asked for
    state = member.init(torch.zeros(D))
    for first, count in ((torch.zeros(D), 0), (few, 50), (torch.zeros(D), 0), (grad, D // 10)):
        payload, state = member.encode(first, state)
        assert payload.count == count
    payload, _ = member.encode(2 * grad, state)
    assert payload.count > D // 5, "it is fixed now"
