"""Low-rank methods against numpy in float64, closed forms and the published payload sizes."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gradstats.compressors import Part, PerParameter, Rng, compressor
from gradstats.compressors.matrices import as_matrix
from gradstats.compressors.methods.atomo import probabilities
from gradstats.compressors.states import plain
from gradstats.exchange import fused, simulate
from gradstats.exchange.counts import Traffic
from gradstats.payloads.low_rank import LowRank

N1, N2 = 24, 18


def matrix(seed, decay=0.8):
    """A float64 matrix whose singular values fall by `decay`."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((N1, N2)))
    v, _ = np.linalg.qr(rng.standard_normal((N2, N2)))
    return torch.from_numpy((u * decay ** np.arange(N2)) @ v.T)


def resnet18(factored=False):
    """Shapes of ResNet-18 for CIFAR without normalisation of the stem; or Pufferfish's hybrid."""
    shapes, before = [(64, 3, 3, 3)], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            for into in (before if block == 0 else width, width):
                if factored and (stage, block) != (0, 0):
                    shapes += [(width // 4, into, 3, 3), (width, width // 4, 1, 1)]
                else:
                    shapes.append((width, into, 3, 3))
                shapes += [(width,), (width,)]
            if block == 0 and before != width:
                shapes += [(width, before, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (10, 512), (10,)]


def floats_sent(spec, shapes):
    """Elements of 4 bytes that a step hands to collectives."""
    member, ledger = compressor(spec), Traffic()
    grads = [torch.zeros(shape) for shape in shapes]
    simulate([fused([member.exchange(grad, member.init(grad)) for grad in grads])], [ledger])
    return ledger.nbytes / 4


@pytest.mark.parametrize(("rank", "floats"), [(1, 45_807), (2, 82_132), (4, 154_782)])
def test_powersgd_sends_of_resnet18_what_was_published(rank, floats):
    shapes = resnet18()
    assert sum(int(np.prod(shape)) for shape in shapes) == 11_173_834
    assert floats_sent(f"powersgd({rank})", shapes) == floats


def test_powersgd_sends_more_of_the_factorised_resnet18():
    shapes = resnet18(factored=True)
    assert sum(int(np.prod(shape)) for shape in shapes) == 3_336_138
    assert floats_sent("powersgd(4)", shapes) == 162_206


def test_signs_of_resnet18_take_a_bit_each():
    parts = tuple(Part(str(i), int(np.prod(s))) for i, s in enumerate(resnet18()))
    grad, ledger = torch.zeros(11_173_834), Traffic()
    member = PerParameter(compressor("signum"), parts)
    simulate([member.exchange(grad, member.init(grad))], [ledger])
    assert 1_396_729 <= ledger.nbytes < 1_396_729 * 1.002  # 62 heads


def test_acp_sgd_sends_one_factor_a_step():
    grad = torch.randn(48, 40, generator=torch.Generator().manual_seed(0))
    member, ledger = compressor("acp-sgd(3)"), Traffic()
    state, sent = member.init(grad), [0]
    for _ in range(4):
        (step,) = simulate([member.exchange(grad, state)], [ledger])
        state = step.state
        sent.append(ledger.nbytes // 4)
    assert np.diff(sent).tolist() == [3 * 48, 3 * 40] * 2


def powersgd_by_hand(workers, q):
    """One step over several workers, by numpy."""
    mean = np.mean(workers, axis=0)
    p, _ = np.linalg.qr(mean @ q)
    q = mean.T @ p
    return p @ q.T, q


def test_powersgd_over_workers_is_the_power_iteration_of_the_mean():
    workers = [matrix(seed) * (seed + 1) for seed in range(3)]
    member = compressor("powersgd(3)")
    states = [member.init(each) for each in workers]
    q = states[0].numpy().copy()
    for _ in range(4):
        exchanges = [
            member.exchange(each, state) for each, state in zip(workers, states, strict=True)
        ]
        steps = simulate(exchanges)
        states = [step.state for step in steps]
        expected, q = powersgd_by_hand([each.numpy() for each in workers], q)
        for step in steps:
            np.testing.assert_allclose(step.update.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["powersgd(3)", "acp-sgd(3)"])
def test_a_warm_start_arrives_at_the_best_approximation(spec):
    grad = matrix(5)
    u, s, vt = np.linalg.svd(grad.numpy())
    member = compressor(spec)
    state = member.init(grad)
    for _ in range(60):
        payload, state = member.encode(grad, state)
    best = (u[:, :3] * s[:3]) @ vt[:3]
    np.testing.assert_allclose(payload.decode().numpy().reshape(N1, N2), best, atol=1e-6)


def test_what_powersgd_sends_and_what_it_loses_are_orthogonal():
    grad = matrix(1)
    payload, _ = compressor("powersgd(2)").encode(grad, compressor("powersgd(2)").init(grad))
    sent = payload.decode().view(N1, N2)
    total = sent.square().sum() + (grad - sent).square().sum()
    torch.testing.assert_close(total, grad.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_svd_loses_the_singular_values_it_leaves_out(rank):
    grad = matrix(2)
    payload, _ = compressor(f"svd({rank})").encode(grad, None)
    s = np.linalg.svd(grad.numpy(), compute_uv=False)
    lost = float((grad.reshape(-1) - payload.decode()).square().sum())
    assert lost == pytest.approx(float((s[rank:] ** 2).sum()), rel=1e-9)
    first, _ = compressor(f"powersgd({rank})").encode(
        grad, compressor(f"powersgd({rank})").init(grad)
    )
    assert float((grad.reshape(-1) - first.decode()).square().sum()) >= lost


def test_singular_values_of_workers_are_gathered_not_summed():
    workers = [matrix(seed) for seed in range(2)]
    member = compressor("svd(2)")
    steps = simulate([member.exchange(each, None) for each in workers])
    expected = 0
    for each in workers:
        u, s, vt = np.linalg.svd(each.numpy())
        expected = expected + (u[:, :2] * s[:2]) @ vt[:2] / 2
    np.testing.assert_allclose(steps[0].update.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "sigma", [[8.0, 1, 1, 0.5], [1.0, 1, 1], [5.0, 4, 0.1, 0.1, 0], [3.0, 0, 0]]
)
@pytest.mark.parametrize("rank", [1, 2])
def test_atomos_probabilities_have_the_least_variance(sigma, rank):
    """Against a numerical minimum of sum σ²/p under p <= 1 and sum p <= r."""
    s = np.array(sigma)
    found = probabilities(torch.from_numpy(s), rank).numpy()
    here = s > 0
    assert found.sum() == pytest.approx(min(rank, here.sum()))
    least = minimize(
        lambda p: float((s[here] ** 2 / p).sum()),
        np.full(here.sum(), min(1, rank / here.sum())) * 0.9,
        bounds=[(1e-6, 1)] * int(here.sum()),
        constraints={"type": "ineq", "fun": lambda p: rank - p.sum()},
    )
    assert float((s[here] ** 2 / found[here]).sum()) <= least.fun * (1 + 1e-6)


@pytest.mark.slow
def test_atomos_second_moment_is_the_sum_of_squares_over_probabilities():
    grad = matrix(3)
    s = np.linalg.svd(grad.numpy(), compute_uv=False)
    p = probabilities(torch.from_numpy(s.copy()), 3).numpy()
    squares = [
        float(compressor("atomo(3)").encode(grad, None, Rng(step=step))[0].decode().square().sum())
        for step in range(4000)
    ]
    expected = float((s**2 / p).sum())
    assert np.mean(squares) == pytest.approx(expected, abs=5 * np.std(squares) / 4000**0.5)


@pytest.mark.parametrize("spec", ["powersgd(4)", "acp-sgd(4)", "svd(4)", "atomo(4)"])
@pytest.mark.parametrize(
    "shape", [(7, 7), (8, 8), (3, 100), (100, 3), (40,), (0, 5), (), (8, 1, 1, 1)]
)
def test_what_factors_would_not_shorten_goes_as_it_is(spec, shape):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert as_matrix(grad, 4) is None
    member = compressor(spec)
    payload, _ = member.encode(grad, member.init(grad), Rng())
    assert torch.equal(payload.decode(), grad.reshape(-1))


@pytest.mark.parametrize("spec", ["powersgd", "acp-sgd", "svd"])
@pytest.mark.parametrize("kind", ["zero", "rank one", "a zero column", "then zero"])
def test_matrices_of_little_rank_are_no_trouble(spec, kind):
    """Also after a zero gradient, from which a power iteration would not come back by itself."""
    column, row = torch.arange(1.0, 31), torch.arange(1.0, 21)
    grad = {
        "zero": torch.zeros(30, 20),
        "rank one": torch.outer(column, row),
        "a zero column": torch.outer(column, row * (row > 5)),
        "then zero": torch.outer(column, row),
    }[kind]
    member = compressor(spec)
    state = member.init(grad)
    for step in range(6):
        now = grad * 0 if kind == "then zero" and step in (1, 2, 3) else grad
        payload, state = member.encode(now, state)
        error = float((payload.decode() - now.reshape(-1)).norm())
        assert error <= 1e-5 * float(grad.norm()) or step in (0, 4), step


@pytest.mark.parametrize("spec", ["powersgd(4)", "svd(4)"])
@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (5, 21), (9, 2, 2, 2)])
def test_what_factors_shorten_at_all_goes_by_factors(spec, shape):
    """4 · (8 + 9) is 68 of 72 elements: one element saved is enough."""
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    member = compressor(spec)
    payload, _ = member.encode(grad, member.init(grad), Rng())
    assert isinstance(payload, LowRank)
    assert payload.left.numel() + payload.right.numel() < grad.numel()


def test_a_step_with_a_nan_does_not_end_those_after_it():
    """PowerSGD starts from the last Q, which has a NaN then: the start before it is kept."""
    grad, member = matrix(3), compressor("powersgd(3)")
    broken = grad.clone()
    broken[2, 5] = torch.nan
    state, whole = member.init(grad), member.init(grad)
    for each in (grad, broken, grad, grad):
        payload, state = member.encode(each, state)
        assert payload.decode().isfinite().all() == (each is not broken)
        assert state.isfinite().all()
    for _ in range(3):
        expected, whole = member.encode(grad, whole)
    assert torch.equal(payload.decode(), expected.decode())  # as if that step had not been


def test_convolutions_are_matrices_by_their_first_dimension():
    grad = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    payload, _ = compressor("svd(2)").encode(grad, None)
    assert isinstance(payload, LowRank)
    assert (payload.left.shape, payload.right.shape) == ((16, 2), (72, 2))
    flat, _ = compressor("svd(2)").encode(grad.reshape(16, 72), None)
    assert torch.equal(payload.decode(), flat.decode())


SHAPES = [(24, 18), (30, 20), (24, 18), (9,), (30, 2, 3, 3), (24, 7), (20, 30), (30, 20), (5, 5)]
KINDS = ["ordinary", "zero", "huge", "tiny", "of rank one", "with a NaN", "with an inf"]


def bucket(worker, step, kind, dtype):
    """Gradients of many shapes, of which the second is special."""
    generator = torch.Generator().manual_seed(100 * worker + step)
    grads = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    special = grads[1]
    if kind == "of rank one":
        special.copy_(torch.outer(special[:, 0].clone(), special[0].clone()))
    special *= {"zero": 0.0, "huge": 1e37, "tiny": 1e-37}.get(kind, 1.0)
    if step == 1 and worker == 1 and kind in ("with a NaN", "with an inf"):
        special[3, 4] = torch.nan if kind == "with a NaN" else torch.inf
    return grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spec", ["powersgd(2)", "acp-sgd(2)", "ef(powersgd(3))", "ef(acp-sgd(3))"]
)
def test_a_bucket_is_exchanged_as_each_gradient_alone(spec, kind, dtype):
    """To the bit where no library rounds by the place of a factor in memory."""
    member = compressor(spec)
    # LAPACK's QR of 3 columns does so on some processors; torch's tolerances are as large
    tolerance = 0 if "(2)" in spec else 1e-5 if dtype != torch.float64 else 1e-12
    first = bucket(0, 0, kind, dtype)
    together = [[member.init(grad) for grad in first] for _ in range(2)]
    apart = copy.deepcopy(together)
    for step in range(3):
        grads = [bucket(worker, step, kind, dtype) for worker in range(2)]
        steps = simulate(
            [
                fused([member.exchange_all(grads[w], together[w], [None] * len(first))])
                for w in range(2)
            ]
        )
        for index in range(len(first)):
            alone = simulate([member.exchange(grads[w][index], apart[w][index]) for w in range(2)])
            for worker, one in enumerate(alone):
                same = steps[worker][0][index]
                assert_alike(same.update, one.update, tolerance)
                assert_alike(same.sent.decode(), one.sent.decode(), tolerance)
                assert_alike(plain(same.state), plain(one.state), tolerance)
                apart[worker][index], together[worker][index] = one.state, same.state


def assert_alike(found, expected, tolerance=0.0):
    """Alike but for a share of the largest magnitude of each tensor; NaN is NaN."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other, tolerance)
    elif isinstance(expected, torch.Tensor):
        known = expected[expected.isfinite()]
        most = float(known.abs().max()) if known.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * most, equal_nan=True)
    else:
        assert found == expected


@pytest.mark.parametrize("spec", ["ef(powersgd(2))", "ef(acp-sgd(2))"])
def test_a_nan_stays_with_its_matrix(spec):
    member, grads = compressor(spec), bucket(0, 0, "ordinary", torch.float32)
    grads[1][2, 2] = torch.nan
    states = [member.init(grad) for grad in grads]
    ((steps,),) = simulate([fused([member.exchange_all(grads, states, [None] * len(grads))])])
    finite = [bool(step.update.isfinite().all()) for step in steps]
    assert finite == [index != 1 for index in range(len(grads))]
    for step in steps:
        assert step.state.residual.isfinite().all()


def test_a_bucket_takes_the_rounds_of_one_matrix():
    member, grads, ledger = (
        compressor("powersgd(2)"),
        bucket(0, 0, "zero", torch.float32),
        Traffic(),
    )
    states = [member.init(grad) for grad in grads]
    simulate([fused([member.exchange_all(grads, states, [None] * len(grads))])], [ledger])
    assert ledger.volumes["all_reduce"].calls == 2
    assert ledger.nbytes == 4 * floats_of(grads)


def floats_of(grads):
    """Elements of the factors of rank 2, or of the gradient where they are more."""
    sizes = [(len(grad), grad.numel() // len(grad)) for grad in grads]
    return sum(min(2 * sum(size), int(np.prod(size))) for size in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_what_was_sent_is_taken_out_of_the_residual(scale, dtype):
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(30, 2, generator=generator), torch.randn(20, 2, generator=generator)
    sent = LowRank(left, right * scale)
    waiting = (torch.randn(600, generator=generator) * scale).to(dtype)
    exact = waiting.double() - (left.double() @ (right * scale).double().T).reshape(-1)
    residual = waiting.clone()
    sent.remove_from(residual)
    most = float(exact.abs().max())
    assert (
        float((residual.double() - exact).abs().max())
        <= 4 * torch.finfo(dtype).eps * most + 2e-7 * most
    )


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_was_sent_as_nan_leaves_nothing(broken):
    left, right = torch.ones(3, 1), torch.ones(2, 1)
    left[1] = broken
    residual = torch.full((6,), 5.0)
    LowRank(left, right).remove_from(residual)
    assert residual.tolist() == [4, 4, 0, 0, 4, 4]


def test_in_half_precision_factors_are_float32():
    grad = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    member = compressor("powersgd")
    (step,) = simulate([member.exchange(grad, member.init(grad))])
    assert step.update.dtype == torch.bfloat16
    assert step.sent.left.dtype == torch.float32


@pytest.mark.parametrize(
    "spec", ["powersgd(0)", "powersgd(1.5)", "svd(-1)", "acp-sgd(0)", "atomo(0)"]
)
def test_a_rank_is_a_whole_number(spec):
    with pytest.raises(ValueError, match=r"rank (of powersgd )?must be a whole number"):
        compressor(spec)
