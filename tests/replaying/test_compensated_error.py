"""The columns that use the residual, for every memory, against loops written out by hand."""

import math

import numpy as np
import pytest
import torch

from gradstats.compressors import MEMORIES, Rng, compressor
from gradstats.replaying.folding import measure, replay_rows

N, STEPS, K = 400, 15, 20


def gradients(workers, n=N):
    rng = np.random.default_rng(5)
    return [
        [torch.from_numpy(rng.laplace(size=n).astype("f4")) for _ in range(workers)]
        for _ in range(STEPS)
    ]


def top(vector):
    kept = np.argsort(np.abs(vector))[len(vector) - K :]
    sent = np.zeros_like(vector)
    sent[kept] = vector[kept]
    return sent


def error_feedback(gamma=1.0):
    """v = g + γe, e = v - sent."""

    def step(g, memory):
        v = g + gamma * memory.get("e", 0)
        sent = top(v)
        memory["e"] = v - sent
        return v, sent, memory["e"]

    return step


def low_pass(beta=0.1):
    """v = g + e, and e moves towards v - sent by β of the way."""

    def step(g, memory):
        e = memory.get("e", np.zeros_like(g))
        v = g + e
        sent = top(v)
        memory["e"] = (1 - beta) * e + beta * (v - sent)
        return v, sent, memory["e"]

    return step


def velocity(momentum=0.9, nesterov=False, masking=True, clip=0.0):
    """v adds up momenta, and loses what was sent."""

    def step(g, memory):
        if clip:
            g = g * min(1, clip / np.linalg.norm(g))
        u, v = memory.get("u", np.zeros_like(g)), memory.get("v", np.zeros_like(g))
        u = momentum * (u + g) if nesterov else momentum * u + g
        v = v + u + (g if nesterov else 0)
        sent = top(v)
        memory["v"] = v - sent
        memory["u"] = np.where(sent != 0, 0, u) if masking else u
        return v, sent, memory["v"]

    return step


def estimate():
    """The receivers add what is sent to an estimate of g: nothing is held back, v is g."""

    def step(g, memory):
        memory["h"] = memory.get("h", 0) + top(g - memory.get("h", 0))
        return g, memory["h"], None

    return step


ORACLES = {
    "ef(topk(0.05))": error_feedback(),
    "ef(topk(0.05), gamma=0.7)": error_feedback(0.7),
    "ef(topk(0.05), gamma=0)": error_feedback(0.0),
    "lowpass(topk(0.05))": low_pass(),
    "lowpass(topk(0.05), beta=0.5)": low_pass(0.5),
    "lowpass(topk(0.05), beta=1)": low_pass(1.0),
    "velocity(topk(0.05))": velocity(),
    "velocity(topk(0.05), momentum=0)": velocity(0.0),
    "velocity(topk(0.05), nesterov=True)": velocity(nesterov=True),
    "velocity(topk(0.05), masking=False)": velocity(masking=False),
    "velocity(topk(0.05), clip=5.0)": velocity(clip=5.0),
    "ef21(topk(0.05))": estimate(),
}


def expected(oracle, steps):
    """error, error_compensated and residual_ratio of each step, of means over the workers."""
    memories = [{} for _ in steps[0]]
    size = np.linalg.norm
    for grads in steps:
        arrays = [grad.double().numpy() for grad in grads]
        triples = [oracle(g, memory) for g, memory in zip(arrays, memories, strict=True)]
        every_v, updates, residuals = zip(*triples, strict=True)
        g, v, update = (np.mean(each, 0) for each in (arrays, every_v, updates))
        held = math.nan if residuals[0] is None else size(np.mean(residuals, 0)) / size(g)
        yield size(g - update) / size(g), size(v - update) / size(v), held


def test_every_memory_has_its_loop():
    assert {spec.partition("(")[0] for spec in ORACLES} == set(MEMORIES)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("spec", ORACLES)
def test_the_columns_of_the_residual_are_those_of_the_loop(spec, workers):
    steps = gradients(workers)
    rows = list(replay_rows(enumerate(steps), [compressor(spec)]))
    for row, wanted in zip(rows, expected(ORACLES[spec], steps), strict=True):
        assert row["status"] == "ok"
        measured = [row["error"], row["error_compensated"], row["residual_ratio"]]
        assert measured == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_what_a_filter_keeps_is_not_what_a_step_loses():
    """A small β keeps a tenth of the error: the error of a step is as large as without it."""
    steps = gradients(1, 20_000)
    rows = list(replay_rows(enumerate(steps), [compressor("lowpass(topk(0.01))")]))
    assert rows[-1]["error_compensated"] > 0.85
    assert rows[-1]["residual_ratio"] < 0.5


def test_a_memory_of_ones_own_is_measured_by_what_it_encodes():
    """One that forgets everything: its residual is 0, and yet the step loses most."""
    from gradstats.compressors.wrappers.low_pass import LowPass

    class Forgets(LowPass):
        def after(self, sent, corrected, state, update=None):
            return state  # the residual stays 0

    member = Forgets(compressor("topk(0.05)"))
    grads = gradients(1)[0]
    states = [member.init(grad) for grad in grads]
    row, _ = measure(member, grads, states, Rng(0, 0))
    g = grads[0].double().numpy()
    assert row.error_compensated == pytest.approx(
        np.linalg.norm(g - top(g)) / np.linalg.norm(g), rel=1e-6
    )
    assert row.residual_ratio == 0
