"""What the memories keep, against their recursions written out by hand in float64."""

from dataclasses import replace

import pytest
import torch

from gradstats.compressors import Part, PerParameter, Rng, compressor
from gradstats.exchange import simulate
from gradstats.kernels import selecting_cpu
from gradstats.payloads.base import Dense
from gradstats.testing import check_compressor

N, STEPS = 400, 50
WAITING = ["ef(topk(0.1))", "ef(qsgd)", "lowpass(topk(0.1), beta=1.0)", "ef21(topk(0.1))"]
WAITING += ["ef(sign)", "ef(intsgd)", "velocity(topk(0.1))", "velocity(topk(0.1), nesterov=True)"]


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STEPS, N, generator=generator, dtype=torch.float64) ** 3


def top(vector, k):
    kept = torch.zeros_like(vector)
    places = vector.abs().topk(k).indices
    kept[places] = vector[places]
    return kept


def run(member, grads):
    state, sent = member.init(grads[0]), []
    for step, grad in enumerate(grads):
        payload, state = member.encode(grad, state, Rng(step=step))
        sent.append(payload.decode())
    return torch.stack(sent), state


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("inner", ["topk(0.05)", "co3(fp4)", "sign"])
def test_a_leaky_memory_forgets_what_it_says(inner, gamma):
    """The identity of CO3: sum ĝ = sum g - e_{T+1} - (1 - γ) sum_{t=2..T} e_t."""
    grads, member = gradients(), compressor(f"ef({inner}, gamma={gamma})")
    state, sent, forgotten = member.init(grads[0]), 0, 0
    for step, grad in enumerate(grads):
        forgotten = forgotten + (1 - gamma) * state.residual.clone()
        payload, state = member.encode(grad, state, Rng(step=step))
        sent = sent + payload.decode().double()
    left = grads.sum(0) - state.residual - forgotten
    torch.testing.assert_close(sent, left, rtol=0, atol=1e-12 * float(grads.abs().sum()))


def test_without_gamma_there_is_no_memory():
    grads = gradients()
    sent, _ = run(compressor("ef(topk(0.05), gamma=0)"), grads)
    assert torch.equal(sent, torch.stack([top(grad, 20) for grad in grads]))


def test_ef21_sends_the_difference_to_its_estimate():
    grads, estimate = gradients(), torch.zeros(N, dtype=torch.float64)
    member = compressor("ef21(topk(0.05))")
    state = member.init(grads[0])
    for grad in grads:
        change = top(grad - estimate, 20)
        payload, state = member.encode(grad, state)
        torch.testing.assert_close(payload.decode(), change, rtol=0, atol=1e-12)
        estimate = estimate + change
        torch.testing.assert_close(state.own, estimate)


def test_ef21_arrives_at_a_gradient_that_stays():
    grad = gradients()[0]
    member = compressor("ef21(topk(0.05))")
    _, state = run(member, [grad] * 20)  # 20 steps of a twentieth
    torch.testing.assert_close(state.own, grad)


def test_ef21_over_workers_is_the_mean_of_the_estimates():
    member = compressor("ef21(topk(0.05))")
    workers = [gradients(seed) for seed in range(3)]
    states = [member.init(grads[0]) for grads in workers]
    for step in range(5):
        exchanges = [
            member.exchange(grads[step], state)
            for grads, state in zip(workers, states, strict=True)
        ]
        steps = simulate(exchanges)
        states = [each.state for each in steps]
        mean = torch.stack([state.own for state in states]).mean(0)
        for each in steps:
            torch.testing.assert_close(each.update, mean)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
def test_velocity_is_the_recursion_of_dgc(nesterov, masking):
    grads, m = gradients(), 0.9
    u = v = torch.zeros(N, dtype=torch.float64)
    sent, _ = run(
        compressor(f"velocity(topk(0.05), nesterov={nesterov}, masking={masking})"), grads
    )
    for grad, actual in zip(grads, sent, strict=True):
        u = m * (u + grad) if nesterov else m * u + grad
        v = v + u + grad if nesterov else v + u
        expected = top(v, 20)
        torch.testing.assert_close(actual, expected)
        v = v - expected
        u = torch.where(expected != 0, 0, u) if masking else u


def test_without_compression_velocity_is_momentum():
    grads = gradients()
    sent, _ = run(compressor("velocity(none, masking=False)"), grads)
    expected = torch.zeros(N, dtype=torch.float64)
    for grad, actual in zip(grads, sent, strict=True):
        expected = 0.9 * expected + grad
        torch.testing.assert_close(actual, expected)


def test_velocity_clips_the_local_gradient():
    grad = torch.tensor([3.0, 4.0])
    for clip, factor in ((1.0, 0.2), (5.0, 1.0), (50.0, 1.0)):
        sent, _ = run(compressor(f"velocity(none, clip={clip})"), [grad])
        torch.testing.assert_close(sent[0], grad * factor)


def test_a_nan_is_delivered_once():
    grad = gradients()[0]
    broken = grad.clone()
    broken[3] = torch.nan
    for spec in ("ef(topk(0.5))", "ef21(topk(0.5))"):
        sent, _ = run(compressor(spec), [broken, grad, grad])
        assert sent[0].isnan().sum() == 1
        assert sent[1:].isfinite().all()


def stepped(member, way, grad, state, rng):
    """(Decoded, state) of a step, by the encoding or by the exchange of one worker."""
    if way == "encode":
        payload, state = member.encode(grad.clone(), state, rng)
        return payload.decode(), state
    (step,) = simulate([member.exchange(grad.clone(), state, rng)])
    return step.sent.decode(), step.state


@pytest.mark.parametrize("spec", ["ef(topk(0.1), gamma=0.7)", "ef(topk(0.1), gamma=0)"])
def test_a_memory_leaks_alike_in_an_exchange(spec):
    member = compressor(spec)
    states = [member.init(gradients()[0]) for _ in range(2)]
    for i, grad in enumerate(gradients()):
        sent = []
        for way in (0, 1):
            rng = Rng(step=i)
            decoded, states[way] = stepped(
                member, ("encode", "exchange")[way], grad, states[way], rng
            )
            sent.append(decoded)
        assert torch.equal(*sent)


def test_what_was_not_delivered_is_not_taken_for_nothing():
    """A NaN that waits while something finite goes is for the next step to deliver."""
    residual = torch.tensor([torch.nan, torch.inf, 1.0, 2.0, 3.0])
    Dense(torch.tensor([0.0, 1.0, torch.nan, -torch.inf, 0.5])).remove_from(residual)
    assert residual[0].isnan()
    assert residual[1:].tolist() == [torch.inf, 0, 0, 2.5]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("spec", ["topk(0.5)", "none", "sign", "randomk(0.3)"])
@pytest.mark.parametrize("way", ["encode", "exchange"])
def test_what_is_broken_waits_until_it_is_delivered_and_no_longer(way, spec, value):
    """Hidden it would never be seen, and taken from itself it would be NaN for ever."""
    grad, member = gradients()[0], compressor(f"ef({spec})")
    state, delivered = member.init(grad), []
    for i in range(12):
        now = grad.clone()
        now[3] = value if i == 0 else grad[3]
        sent, state = stepped(member, way, now, state, Rng(step=i))
        delivered.append(not sent[3].isfinite())
        assert bool(state.residual[3].isfinite()) == any(delivered), i
    assert delivered.count(True) == 1


def test_warm_up_follows_the_published_schedule():
    member = compressor("warmup(topk(0.001), stages=4, steps=2)")
    grad = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    state, counts = member.init(grad), []
    for _ in range(10):
        payload, state = member.encode(grad, state)
        counts.append(payload.count)
    ratios = [0.25119, 0.063096, 0.015849, 0.0039811, 0.001]
    assert counts == [round(ratio * 100_000) for ratio in ratios for _ in range(2)]


@pytest.mark.parametrize(
    "spec",
    [
        "ef(topk(0.05), gamma=0.7)",
        "ef21(topk(0.05))",
        "ef21(sign)",
        "velocity(dgc(0.05))",
        "warmup(exact-threshold(0.05), steps=1)",
        "ef(warmup(topk(0.05)))",
    ],
)
@pytest.mark.slow
def test_memories_and_policies_obey_the_laws(spec):
    check_compressor(compressor(spec), fresh_process=False)
    assert compressor(str(compressor(spec))) == compressor(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ef(ef21(topk(0.1)))", "must not have a memory inside"),
        ("ef(topk(0.1), gamma=1.5)", "gamma must lie in"),
        ("velocity(topk(0.1), momentum=1.0)", "momentum must lie in"),
        ("velocity(topk(0.1), clip=-1)", "clip must be a norm"),
        ("warmup(qsgd)", "must have a ratio"),
        ("warmup(topk(0.1), steps=0)", "steps must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        compressor(spec)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("ef(topk(0.1))", "ef"),
        ("ef(topk(0.1) | sign, gamma=0.7)", "ef(gamma=0.7)"),
        ("ef21(topk(0.1))", "ef21"),
        (
            "velocity(dgc(0.1), momentum=0.5, nesterov=True)",
            "velocity(momentum=0.5, nesterov=True)",
        ),
    ],
)
def test_a_memory_has_a_label_of_its_own(spec, label):
    assert compressor(spec).label == label


def test_ef21_learns_nothing_of_an_element_that_a_worker_broke():
    member = compressor("ef21(topk(1.0))")
    workers = [gradients(seed) for seed in range(3)]
    states = [member.init(grads[0]) for grads in workers]
    for step in range(4):
        given = [grads[step].clone() for grads in workers]
        if step == 1:
            given[2][5] = torch.nan
        exchanges = [member.exchange(g, s) for g, s in zip(given, states, strict=True)]
        steps = simulate(exchanges)
        assert bool(steps[0].update.isfinite().all()) == (step != 1)
        states = [each.state for each in steps]
        mean = torch.stack([state.own for state in states]).mean(0)
        for state in states:
            torch.testing.assert_close(state.mean, mean)


@pytest.mark.parametrize("spec", ["velocity(topk(0.05))", "velocity(qsgd)", "velocity(topk(1.0))"])
def test_dense_parts_of_a_replay_keep_their_momentum(spec):
    member = compressor(spec)
    parts = (Part("a", 300), Part("b", 100, dense=True))
    whole = replace(member, compressor=PerParameter(member.compressor, parts))
    grads = gradients()
    sent, _ = run(whole, grads)
    momentum = torch.zeros(100, dtype=torch.float64)
    for grad, actual in zip(grads, sent, strict=True):
        momentum = 0.9 * momentum + grad[300:]
        torch.testing.assert_close(actual[300:], momentum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", WAITING)
def test_what_waits_in_16_bits_stays_in_their_range(spec, dtype):
    """The residual of a few large gradients is more than float16 can hold."""
    member, grad = compressor(spec), torch.full((100,), torch.finfo(dtype).max / 3).to(dtype)
    one, several = member.init(grad), [member.init(grad)] * 2
    for step in range(12):
        payload, one = member.encode(grad, one, Rng(step=step))
        assert payload.decode().isfinite().all()
        steps = simulate(
            [
                member.exchange(grad, state, Rng(0, step, "", worker, 2))
                for worker, state in enumerate(several)
            ]
        )
        assert all(each.update.isfinite().all() for each in steps)
        several = [each.state for each in steps]


ADDING = ["ef({})", "ef({}, gamma=0.7)", "velocity({})", "velocity({}, nesterov=True, clip=1.0)"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inner", ["exact-threshold(0.05)", "threshold(0.05)", "sidco-e(0.05)"])
@pytest.mark.parametrize("memory", ADDING)
@pytest.mark.parametrize("few", [1 << 17, 0])
def test_selecting_while_adding_changes_no_bit(monkeypatch, memory, inner, dtype, few):
    """The same as adding, encoding the sum and subtracting, with a NaN and inf on the way."""
    monkeypatch.setattr(selecting_cpu, "FEW", few)
    member, grads = compressor(memory.format(inner)), gradients().to(dtype)
    if memory.startswith("ef"):
        grads[3, 5], grads[3, 77] = torch.nan, -torch.inf
    state = member.init(grads[0].view(20, 20))
    for grad in grads[:8].view(8, 20, 20):
        held = state.clone()
        corrected, midway = member.before(grad, held)
        sent, within = member.compressor.encode(corrected, midway.inner)
        expected = replace(member.after(sent, corrected, midway), inner=within)
        payload, state = member.encode(grad, state)
        assert payload.to_bytes() == sent.to_bytes()
        assert torch.equal(state.residual, expected.residual)
        assert state.inner == expected.inner
        if memory.startswith("velocity"):
            assert torch.equal(state.momentum, expected.momentum)
