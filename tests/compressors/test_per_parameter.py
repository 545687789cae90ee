"""One compressor a parameter: the parts of a flat gradient are independent."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from gradstats.compressors import (
    ErrorFeedback,
    Part,
    PayloadError,
    PerParameter,
    Rng,
    TopK,
    compressor,
    from_bytes,
)
from gradstats.exchange import simulate
from gradstats.exchange.driving import fused

PARTS = (Part("a", 3000), Part("b", 40, dense=True), Part("c", 2000))
GRAD = torch.randn(5040, generator=torch.Generator().manual_seed(0))


def test_each_part_is_encoded_as_if_it_were_alone():
    for spec in ("topk(0.01)", "randomk(0.01)", "dgc(0.01)", "sidco-e(0.01)"):
        member = PerParameter(compressor(spec), PARTS)
        payload, _ = member.encode(GRAD, member.init(GRAD), Rng(step=3))
        a, b, c = torch.split(payload.decode(), [3000, 40, 2000])
        assert torch.equal(b, GRAD[3000:3040])
        for name, view, decoded in (("a", GRAD[:3000], a), ("c", GRAD[3040:], c)):
            alone = compressor(spec)
            expected, _ = alone.encode(view, alone.init(view), Rng(step=3, parameter=name))
            assert torch.equal(decoded, expected.decode())


def test_targets_and_sizes_add_up():
    member = PerParameter(compressor("topk(0.01)"), PARTS)
    payload, _ = member.encode(GRAD, member.init(GRAD))
    assert member.target_count(5040) == payload.count == 30 + 40 + 20
    assert payload.numel == 5040
    assert payload.nbytes == len(payload.to_bytes())
    assert torch.equal(from_bytes(payload.to_bytes()).decode(), payload.decode())
    assert str(member) == "per-parameter(topk(0.01))"


def test_states_stay_with_their_part():
    """The threshold of each part is its own: b's small elements do not follow a's."""
    member = PerParameter(compressor("threshold(0.1)"), (Part("a", 10), Part("b", 10)))
    grad = torch.cat([torch.arange(10.0), torch.arange(10.0) / 100])
    state = member.init(grad)
    for _ in range(2):
        payload, state = member.encode(grad, state)
        assert payload.decode().nonzero().flatten().tolist() == [9, 19]


def test_feedback_around_parts_conserves_over_workers():
    member = ErrorFeedback(PerParameter(compressor("topk(0.01)"), PARTS))
    whole = torch.randint(-50, 51, (2, 3, 5040), generator=torch.Generator().manual_seed(1))
    states = [member.init(whole[worker, 0].double()) for worker in range(2)]
    sent, updates = torch.zeros(2, 5040, dtype=torch.float64), torch.zeros(5040)
    for step in range(3):
        steps = simulate(
            [member.exchange(whole[w, step].double(), states[w], Rng(step=step)) for w in (0, 1)]
        )
        states = [each.state for each in steps]
        updates = updates + steps[0].update
        for worker, each in enumerate(steps):
            each.sent.add_to(sent[worker])
    for worker in range(2):
        assert torch.equal(sent[worker] + states[worker].residual, whole[worker].sum(0).double())
    assert torch.equal(updates, sent.mean(0))


def test_a_damaged_bundle_is_refused():
    member = PerParameter(compressor("topk(0.01)"), PARTS)
    data = member.encode(GRAD, member.init(GRAD))[0].to_bytes()
    for place in (0, 5, 20, 35, 40, 60, len(data) - 1):
        with pytest.raises(PayloadError):
            from_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(PayloadError):
            from_bytes(data[:place])
    with pytest.raises(PayloadError, match="number of elements is"):
        from_bytes(data, max_numel=5000)


@pytest.mark.parametrize("spec", ["none", "bf16", "topk(0.5)", "randomk(0.5)", "sidco-e(0.5)"])
def test_what_was_sent_as_nan_leaves_nothing_behind(spec):
    """A NaN in a residual would poison every later gradient at its place."""
    member = ErrorFeedback(compressor(spec))
    grad = torch.arange(1.0, 9.0)
    broken = torch.where(torch.arange(8) == 3, torch.nan, grad)
    state = member.init(grad)
    for step in range(40):
        payload, state = member.encode(broken if step == 0 else grad, state, Rng(step=step))
        sent_nan = payload.decode()[3].isnan()
        assert step > 0 or spec.startswith("randomk") or sent_nan
        if sent_nan:
            assert state.residual[3] == 0
            break
    else:
        pytest.fail("the NaN was never sent")
    payload, state = member.encode(grad, state, Rng(step=41))
    assert payload.decode().isfinite().all()
    assert state.residual.isfinite().all()


class Counted(TopK):
    """Counts the gradients that it sends dense."""

    dense_sizes: ClassVar[list[int]] = []

    def dense(self, grad, state):
        self.dense_sizes.append(grad.numel())
        return super().dense(grad, state)


def test_dense_parts_without_elements_exchange_nothing():
    """Of a few tracked elements most biases have none."""
    empty = Part("e", 0, dense=True)
    some, all_parts = (PARTS[0], PARTS[1]), (empty, PARTS[0], empty, PARTS[1], empty)
    grad = GRAD[:3040]
    few, many = (PerParameter(Counted(0.01), parts) for parts in (some, all_parts))
    Counted.dense_sizes.clear()
    (expected,) = simulate([few.exchange(grad, few.init(grad))])
    (step,) = simulate([many.exchange(grad, many.init(grad))])
    assert Counted.dense_sizes == [40, 40]
    assert torch.equal(step.update, expected.update)
    assert step.sent.numel == 3040
    assert step.sent.count == expected.sent.count
    assert len(step.state) == 5


def test_a_gradient_of_empty_parts_has_an_update():
    member = PerParameter(compressor("topk(0.01)"), (Part("e", 0, dense=True),) * 2)
    grad = torch.zeros(0)
    (step,) = simulate([member.exchange(grad, member.init(grad))])
    assert step.update.shape == (0,)


@pytest.mark.parametrize("spec", ["sidco-e(0.01)", "sidco-gp(0.01)", "sidco-p(0.1, stages=3)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_thresholds_of_many_gradients_are_those_of_each_alone(spec, dtype):
    """Zeros, nothing, one element, NaN, and a gradient that is too large to be copied."""
    generator = torch.Generator().manual_seed(2)
    sizes = (700, 0, 1, 20, 0, 20_000, 3000)
    grads = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    grads.append(torch.zeros(50, dtype=dtype))
    grads[-2][5] = torch.nan
    member = compressor(spec)
    states = [replace(member.init(grad), count=1 + i % 3) for i, grad in enumerate(grads)]
    ((steps,),) = simulate([fused([member.exchange_all(grads, states, [None] * len(grads))])])
    for grad, state, step in zip(grads, states, steps, strict=True):
        payload, later = member.encode(grad, state)
        assert torch.equal(step.sent.indices, payload.indices)
        assert step.sent.to_bytes() == payload.to_bytes()
        assert step.state == later


def test_thresholds_of_sums_are_those_of_the_sums():
    generator = torch.Generator().manual_seed(3)
    terms = [tuple(torch.randn(2, size, generator=generator)) for size in (500, 900)]
    member = ErrorFeedback(compressor("sidco-gp(0.01)"))
    states = [replace(member.init(grad), residual=residual) for residual, grad in terms]
    grads = [grad for _, grad in terms]
    ((steps,),) = simulate([fused([member.exchange_all(grads, states, [None] * 2)])])
    for (residual, grad), state, step in zip(terms, states, steps, strict=True):
        payload, _ = member.compressor.encode(residual + grad, state.inner)
        assert torch.equal(step.sent.decode(), payload.decode())
        assert torch.equal(step.state.residual, residual + grad - payload.decode())
