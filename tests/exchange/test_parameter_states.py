"""States that are cut and joined where parameters are compressed in other groups than before."""

import io

import pytest
import torch

from gradstats.compressors import Rng, compressor
from gradstats.compressors.states import divided, joined, plain, restored
from gradstats.exchange import simulate
from gradstats.exchange.parameter_states import Memories, resharded

SPECS = ["ef(topk(0.1))", "ef(sidco-e(0.1))", "velocity(dgc(0.1))", "ef21(topk(0.1))", "signum"]
SPECS += ["ef(twoshot(qsgd))", "ef(ring(sign))", "warmup(twoshot(topk(0.1)))"]
SPECS += ["ef(twoshot(sidco-e(0.1)))", "ef(twoshot(sidco-e(0.1) | qsgd))"]
SPECS += ["warmup(twoshot(sidco-e(0.1)))", "twoshot(threshold(0.1))", "sidco-e(0.1) | qsgd"]
SPECS += ["ef(powersgd)", "acp-sgd", "intsgd", "warmup(topk(0.1))", "threshold(0.1)", "adacomp"]


def gradient(step, shape=(60, 40)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def advanced(member, steps=7):
    state = member.init(gradient(0))
    for step in range(steps):
        _, state = member.encode(gradient(step), state, Rng(step=step))
    return state


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_state_goes_on_as_the_state_itself(spec):
    member = compressor(spec)
    state = advanced(member)
    file = io.BytesIO()
    torch.save(plain(state), file)
    file.seek(0)
    again = restored(member.init(gradient(0)), torch.load(file, weights_only=True))
    for step in range(7, 10):
        sent, state = member.encode(gradient(step), state, Rng(step=step))
        same, again = member.encode(gradient(step), again, Rng(step=step))
        assert sent.to_bytes() == same.to_bytes()


@pytest.mark.parametrize(
    "spec", ["ef(topk(0.1))", "velocity(dgc(0.1))", "ef21(topk(0.1))", "signum"]
)
def test_cutting_and_joining_gives_the_state_back(spec):
    member = compressor(spec)
    state = member.init(gradient(0, 2400))
    for step in range(4):
        _, state = member.encode(gradient(step, 2400), state, Rng(step=step))
    numels = [100, 2000, 300]
    whole = joined(divided(state, numels), numels)
    sent, _ = member.encode(gradient(9, 2400), state, Rng(step=9))
    same, _ = member.encode(gradient(9, 2400), whole, Rng(step=9))
    assert sent.to_bytes() == same.to_bytes()


@pytest.mark.parametrize("after", [1, 2, 5])
def test_what_owners_of_chunks_hold_back_goes_to_the_new_owners(after):
    """Σ owned + mean residual stays, through the checkpoints of three workers."""
    member, grads = compressor("ef(twoshot(sign))"), [gradient(w, 300) for w in range(3)]
    steps = simulate(
        [member.exchange(g, member.init(g), Rng(worker=w, workers=3)) for w, g in enumerate(grads)]
    )
    saved = []
    for grad, step in zip(grads, steps, strict=True):
        memories = Memories(member)
        memories.take((0,), [grad], grad)
        memories.put((0,), step.state)
        saved.append(memories.saved())
    again = [resharded(member, saved, worker, after) for worker in range(after)]

    def held_back(all_saved):
        states = [each[0]["state"] for each in all_saved]
        mean = torch.stack([state["residual"] for state in states]).double().mean(0)
        return sum((state["inner"]["owned"].double() for state in states), mean)

    torch.testing.assert_close(held_back(again), held_back(saved), rtol=1e-6, atol=1e-6)
    assert float(held_back(again).norm()) > 1


CODES = ["ef(twoshot(sidco-e(0.1)))", "twoshot(sidco-e(0.1) | qsgd)", "twoshot(threshold(0.1))"]
CODES += ["ef(warmup(twoshot(sidco-e(0.05), second=threshold(0.1)), steps=3))"]


def step_of(member, workers, step):
    """The update of all workers' next step; their states change in place."""
    exchanges = []
    for worker, memories in enumerate(workers):
        grad, rng = gradient(100 * step + worker, 2400), Rng(0, step, "", worker, len(workers))
        exchanges.append(member.exchange(grad, memories.take((0,), [grad], grad), rng))
    steps = simulate(exchanges)
    for memories, each in zip(workers, steps, strict=True):
        memories.put((0,), each.state)
    return steps[0].update


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("spec", CODES)
def test_states_of_both_codes_go_on_from_a_checkpoint(spec, workers):
    member = compressor(spec)
    whole = [Memories(member) for _ in range(workers)]
    for step in range(7):
        step_of(member, whole, step)
    again = [Memories(member) for _ in range(workers)]
    for memories, saved in zip(again, whole, strict=True):
        file = io.BytesIO()
        torch.save(saved.saved(), file)
        file.seek(0)
        memories.load(torch.load(file, weights_only=True))
    for step in range(7, 14):
        assert torch.equal(step_of(member, again, step), step_of(member, whole, step))
    assert repr([each.saved() for each in again]) == repr([each.saved() for each in whole])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("spec", CODES)
def test_a_parameter_that_was_stepped_joins_a_fresh_one(spec, order):
    member, grads = compressor(spec), [gradient(5, 60), gradient(6, 80)]
    memories = Memories(member)
    grad = grads[0]
    _, state = member.encode(grad, memories.take((0,), [grad], grad), Rng())
    memories.put((0,), state)
    chosen = [grads[key] for key in order]
    together = torch.cat(chosen)
    _, state = member.encode(together, memories.take(order, chosen, together), Rng(step=1))
    memories.put(order, state)
    again = Memories(member)
    again.load(memories.saved())
    taken = again.take(order, chosen, together)
    sent, same = (member.encode(together, s, Rng(step=2))[0] for s in (state, taken))
    assert sent.to_bytes() == same.to_bytes()


@pytest.mark.parametrize("after", [1, 2, 5])
def test_codes_go_on_when_the_number_of_workers_changes(after):
    """Stages adapt over windows of five steps: here one that is under way."""
    member = compressor("ef(twoshot(sidco-e(0.1)))")
    workers = [Memories(member) for _ in range(3)]
    for step in range(8):
        step_of(member, workers, step)
    first, second = (workers[0].saved()[0]["state"]["inner"][name] for name in ("first", "second"))
    saved = [each.saved() for each in workers]
    again = [Memories(member) for _ in range(after)]
    for worker, memories in enumerate(again):
        memories.load(resharded(member, saved, worker, after))
        inner = memories.saved()[0]["state"]["inner"]
        assert inner["first"] == (first[0],) * after
        assert inner["second"] == second
    step_of(member, again, 8)
    assert len(again[0].saved()[0]["state"]["inner"]["first"][0]["window"]) == 4


def residuals(memories):
    return {key: saved["state"]["residual"] for key, saved in memories.saved().items()}


def test_a_residual_stays_with_its_parameter_when_groups_change():
    member = compressor("ef(topk(0.01))")
    memories, grads = Memories(member), [gradient(0, 30), gradient(1, 50), gradient(2, 20)]

    def step(places):
        chosen = [grads[place] for place in places]
        together = torch.cat(chosen)
        _, state = member.encode(together, memories.take(tuple(places), chosen, together))
        memories.put(tuple(places), state)

    step([0, 1])
    step([2])
    before = residuals(memories)
    assert {key: len(held) for key, held in before.items()} == {0: 30, 1: 50, 2: 20}
    taken = memories.take((1, 2), grads[1:], torch.cat(grads[1:]))
    assert torch.equal(taken.residual, torch.cat([before[1], before[2]]))
    memories.put((1, 2), taken)
    after = residuals(memories)
    assert all(torch.equal(after[key], before[key]) for key in (0, 1, 2))
    step([2, 1, 0])
    assert set(residuals(memories)) == {0, 1, 2}


def test_a_parameter_without_a_memory_joins_one_that_has_it():
    member = compressor("ef(topk(0.01))")
    memories, grads = Memories(member), [gradient(0, 30), gradient(1, 50)]
    _, state = member.encode(grads[0], memories.take((0,), grads[:1], grads[0]))
    memories.put((0,), state)
    held = residuals(memories)[0]
    taken = memories.take((0, 1), grads, torch.cat(grads))
    assert torch.equal(taken.residual, torch.cat([held, torch.zeros(50)]))


def test_a_saved_state_of_another_size_is_refused():
    member = compressor("ef(topk(0.01))")
    memories, grad = Memories(member), gradient(0, 30)
    memories.take((0,), [grad], grad)
    other = Memories(member)
    other.load(memories.saved())
    with pytest.raises(ValueError, match="must be of 40 elements, got one of 30"):
        other.take((0,), [gradient(0, 40)], gradient(0, 40))
