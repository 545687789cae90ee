"""`Run.compensated`: what the memory of a compressor makes of the gradients, by hand."""

import math

import pytest
import torch

import gradstats
from gradstats.summary import summarize
from tests.runs.test_groups import same_counts

K = 40  # of 2,000 tracked elements at ratio 0.02


@pytest.fixture(scope="module")
def run(small_run):
    return gradstats.open(small_run)


def top(vector):
    sent = torch.zeros_like(vector)
    kept = vector.abs().topk(K).indices
    sent[kept] = vector[kept]
    return sent


def error_feedback(grads):
    residual = torch.zeros(2_000)
    for grad in grads:
        v = residual + grad
        residual = v - top(v)
        yield v


def low_pass(grads):
    residual = torch.zeros(2_000)
    for grad in grads:
        v = residual + grad
        residual = (v - top(v)) * 0.1 + 0.9 * residual
        yield v


def velocity(grads):
    momentum, waiting = torch.zeros(2_000), torch.zeros(2_000)
    for grad in grads:
        momentum = 0.9 * momentum + grad
        v = waiting + momentum
        waiting = v - top(v)
        momentum = torch.where(top(v) != 0, 0, momentum)
        yield v


def differences(grads):
    estimate = torch.zeros(2_000)
    for grad in grads:
        yield grad - estimate
        estimate = estimate + top(grad - estimate)


BY_HAND = {
    "topk(0.02)": error_feedback,
    "ef(topk(0.02))": error_feedback,
    "lowpass(topk(0.02))": low_pass,
    "velocity(topk(0.02))": velocity,
    "ef21(topk(0.02))": differences,
}


@pytest.mark.parametrize("spec", BY_HAND)
def test_summaries_are_those_of_the_vectors_that_are_encoded(run, spec):
    kind = "track"
    steps, grads = zip(*run.gradients(kind), strict=True)
    pairs = list(run.compensated(spec))
    assert [step for step, _ in pairs] == list(steps)
    for (_, summary), v in zip(pairs, BY_HAND[spec](grads), strict=True):
        expected = summarize(v)
        assert summary.n == 2_000
        assert summary.mean == pytest.approx(expected.mean, rel=1e-3, abs=1e-7)
        assert summary.max_abs == pytest.approx(expected.max_abs, rel=1e-5)
        for share in (0.5, 0.1, 0.01):
            assert summary.quantile(share) == pytest.approx(expected.quantile(share), rel=0.01)


def test_a_fit_fits_the_same_vectors(run):
    settings = {"families": "laplace", "ratios": 0.1, "stride": 110}
    table = gradstats.fit(run, compensated="lowpass(topk(0.02))", **settings)
    summaries = dict(run.compensated("lowpass(topk(0.02))"))
    for step, scale in zip(table["step"], table["scale"], strict=True):
        law = gradstats.families.Laplace.fit(summaries[step])
        assert scale == pytest.approx(law.scale, rel=1e-12)


def test_an_instance_is_as_good_as_its_spec_and_steps_are_selected(small_run):
    few = gradstats.open(small_run, steps=(10, 14, 1), parameters="fc.*")
    by_spec, by_instance = (
        list(few.compensated(each)) for each in ("topk(0.02)", gradstats.compressor("topk(0.02)"))
    )
    assert [step for step, _ in by_spec] == [10, 11, 12, 13]
    for (_, one), (_, other) in zip(by_spec, by_instance, strict=True):
        same_counts(one, other)


def test_parts_are_compressed_by_themselves_where_it_is_written_so(run):
    whole, parts = (
        dict(run.compensated(spec)) for spec in ("topk(0.02)", "per-parameter(topk(0.02))")
    )
    assert whole[0].max_abs == parts[0].max_abs  # no residual yet
    assert whole[200].quantile(0.5) != parts[200].quantile(0.5)


def test_a_gradient_that_is_not_finite_is_left_out(run_writer, tmp_path):
    grads = {step: {"w": torch.randn(2_000)} for step in range(5)}
    grads[2]["w"][7] = math.nan
    run = gradstats.open(run_writer(tmp_path / "nan.zarr", grads))
    assert [step for step, _ in run.compensated("topk(0.02)")] == [0, 1, 3, 4]


def test_what_cannot_be_compensated_is_named(run):
    with pytest.raises(ValueError, match=r"as powersgd does: it needs whole matrices"):
        next(run.compensated("powersgd(2)"))
    with pytest.raises(ValueError, match="must be given a ratio"):
        next(run.compensated("topk"))


def test_a_policy_of_losses_follows_them(run_writer, tmp_path):
    """AdaQuant skips the steps without a loss, and none was logged here."""
    grads = {step: {"w": torch.randn(2_000)} for step in range(3)}
    run = gradstats.open(run_writer(tmp_path / "loss.zarr", grads))
    assert all(map(math.isnan, run.losses().values()))
    assert list(run.compensated("adaquant(qsgd)")) == []
