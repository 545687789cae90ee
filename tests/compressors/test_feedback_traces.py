"""k̂/k under error feedback, step by step, as the code released with SIDCo traces it.

The same Laplace grid of 100,000 elements is added at every step. The traces are printed to two
digits (one element is 0.01 at ratio 0.001), and our thresholds come from magnitudes counted in
bins of relative width 1/128. So 0.02 is the rounding plus one element on either side. From step 20
on feedback has amplified those differences; late steps that miss 0.02 say by how much.
"""

import statistics

import pytest

from gradstats.compressors import compressor

N = 100_000
STEPS = (1, 2, 3, 5, 10, 20, 30, 50)
ADAPTED = (1, 1, 1, 1, 2)  # stages at steps 1 … 10
TRACES = {
    "sidco-e(0.001, stages=1)": (1.00, 0.03, 0.03, 0.08, 0.04, 0.01, 0.01, 0.00),
    "sidco-e(0.001)": (1.00, 0.03, 0.03, 0.08, 0.04, 0.99, 0.74, 0.71),
    "sidco-p(0.001)": (1.00, 0.35, 0.06, 0.11, 0.24, 1.01, 0.80, 1.01),
    "sidco-gp(0.001)": (0.96, 0.05, 0.03, 0.08, 0.23, 1.11, 0.85, 1.05),
    "sidco-p(0.01, stages=2)": (1.00, 1.096, 0.799, 0.958, 0.727, 0.647, 0.976, 0.274),
    "sidco-e(0.1, stages=2)": (1.00, 1.444, 1.315, 1.534, 1.271, 1.058, 1.227, 1.077),
}
# After step 30 the rule moves E to and fro between 4 stages (0.3 … 0.8) and 5 (2.1 … 2.4): a cycle
# in which step 50 repeats its decimals only to a few elements.
LOOSER = {("sidco-e(0.001)", 50): 0.05}


@pytest.fixture(scope="module")
def traced(grid):
    traces = {}

    def trace(spec):
        if spec not in traces:
            traces[spec] = list(_trace(spec, grid("laplace", N)))
        return traces[spec]

    return trace


def _trace(spec, grad):
    """k̂/k and the stages used, of fifty steps."""
    member = compressor(f"ef({spec})")
    state = member.init(grad)
    for _ in range(max(STEPS)):
        stages = state.inner.count
        payload, state = member.encode(grad, state)
        yield payload.count / (member.ratio_asked * N), stages


@pytest.mark.parametrize("spec", TRACES)
def test_steps_are_those_of_the_released_code(traced, spec):
    for step, golden in zip(STEPS, TRACES[spec], strict=True):
        achieved, _ = traced(spec)[step - 1]
        assert achieved == pytest.approx(golden, abs=LOOSER.get((spec, step), 0.02)), step


@pytest.mark.parametrize(
    ("spec", "stages"),
    [
        ("sidco-e(0.001)", (*ADAPTED, 4, 4, 4)),
        ("sidco-p(0.001)", (*ADAPTED, 3, 3, 3)),
        ("sidco-gp(0.001)", (*ADAPTED, 3, 3, 3)),
    ],
)
def test_stages_are_those_of_the_released_code(traced, spec, stages):
    assert tuple(traced(spec)[step - 1][1] for step in STEPS) == stages


def test_a_fixed_stage_selects_a_tenth_to_a_hundredth_under_feedback(traced):
    """The fit is exact on the first step: what it then lacks, feedback took from it."""
    achieved = [khat_over_k for khat_over_k, _ in traced("sidco-e(0.001, stages=1)")]
    assert achieved[0] == pytest.approx(1, abs=0.01)
    assert max(achieved[1:]) < 0.1
    assert statistics.mean(achieved[19:]) < 0.02


@pytest.mark.parametrize("spec", ["sidco-p(0.001)", "sidco-gp(0.001)"])
def test_adaptive_stages_recover(traced, spec):
    late = [khat_over_k for khat_over_k, _ in traced(spec)][19:]
    assert 0.5 <= min(late) <= max(late) <= 1.3


def test_adaptive_stages_of_the_exponential_recover_and_then_alternate(traced):
    late = traced("sidco-e(0.001)")[15:]
    assert all(0.5 <= khat_over_k <= 1.3 for khat_over_k, _ in late[:15])
    assert {stages for _, stages in late} == {4, 5}
    assert all(khat_over_k > 2 for khat_over_k, stages in late if stages == 5)
