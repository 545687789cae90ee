"""What members promise beyond the laws: their counts, bytes, randomness and memory."""

import math
from dataclasses import replace

import pytest
import torch

from gradstats import kernels
from gradstats.compressors import (
    COMPRESSORS,
    SUPPORTED,
    ErrorFeedback,
    Rng,
    compressor,
    compressors,
    from_bytes,
)
from gradstats.compressors.contracts import KEPT_SHARE
from gradstats.exchange import simulate
from gradstats.payloads.sparse import Sparse
from gradstats.replaying.folding import replay_rows

RATIOS = [0.1, 0.01, 0.001, 1.0]
TOP_SETS = [
    str(each)
    for name in COMPRESSORS
    for each in compressors(name, RATIOS)
    if each.contract.delta is KEPT_SHARE and not each.contract.in_expectation
]
N = 1000


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


@pytest.mark.parametrize("spec", sorted(TOP_SETS))
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
    for name in ("topk", "exact-threshold", "randomk"):
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
    for spec in ("randomk(0.1)", "dgc(0.1)", "qsgd", "eden"):
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
    """Values as they are, 10 bits an index, bits of symbols, a few bytes that say what it is."""
    x = torch.randn(N, generator=torch.Generator().manual_seed(1))
    bytes_of = {
        spec: compressor(spec).encode(x, None, Rng())[0].nbytes
        for spec in ("none", "bf16", "topk(0.1)", "randomk(0.1)")
    }
    values = {"none": 4000, "bf16": 2000, "topk(0.1)": 400 + 125, "randomk(0.1)": 400}
    for spec, nbytes in values.items():
        assert nbytes - 70 < bytes_of[spec] <= nbytes + 40
    half, _ = compressor("topk(0.1)").encode(x.bfloat16(), None)
    assert bytes_of["topk(0.1)"] - half.nbytes == 200
    assert from_bytes(half.to_bytes()).values.dtype == torch.bfloat16


def test_workers_share_the_random_mask_and_steps_do_not():
    member, x = compressor("randomk(0.1)"), torch.arange(N).double()
    first, other_worker, other_step = (
        member.encode(x, None, rng)[0].values
        for rng in (Rng(worker=0), Rng(worker=1), replace(Rng(), step=1))
    )
    assert torch.equal(first, other_worker)
    assert not torch.equal(first, other_step)


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_plain_form_sends_the_same(name):
    """The eager kernels define what is sent: the same places and symbols, scales to 1e-6."""
    x = torch.randn(30_000, generator=torch.Generator().manual_seed(5)) ** 3
    for member in compressors(name, [0.01]):
        fast, _ = member.encode(x, member.init(x), Rng())
        with kernels.use("eager"):
            plain, _ = member.encode(x, member.init(x), Rng())
        if isinstance(fast, Sparse):
            assert torch.equal(fast.indices, plain.indices)
        ours, definition = fast.decode(), plain.decode()
        if name == "eden":  # a rotation sums in another order, and a level may be its neighbour
            assert float((ours - definition).norm() / definition.norm()) < 0.01
        else:
            torch.testing.assert_close(ours, definition, rtol=1e-6, atol=0)


def test_adaquant_in_a_replay_needs_the_loss():
    grads = [(step, torch.randn(500)) for step in range(3)]
    member = compressor("adaquant(qsgd(bits=3))")
    without = list(replay_rows(grads, [member]))
    assert all("loss of this step" in row["status"] for row in without)
    told = list(replay_rows(grads, [member], losses={0: 4.0, 1: 1.0, 2: 0.25}))
    assert [row["status"] for row in told] == ["ok"] * 3
    assert told[0]["bits"] < told[1]["bits"] < told[2]["bits"]
    fed = list(replay_rows(grads, [ErrorFeedback(member)], losses={0: 4.0, 1: 1.0, 2: 0.25}))
    assert fed[0]["bits"] < fed[2]["bits"]
