"""Replay rows against a float64 loop written out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from gradstats.compressors import ErrorFeedback, Part, PerParameter, Rng, compressor
from gradstats.compressors.wrappers.memory import encoded
from gradstats.replaying import timing
from gradstats.replaying.columns import Measured
from gradstats.replaying.folding import replay_rows, settled
from gradstats.replaying.timing import time_compressor
from gradstats.runs.tables import unmeasured

N, STEPS = 400, 12
HEADER = 9 + 6 + 3  # envelope; kind, number, index code, count, length; kind, dtype, count


def gradients(steps=STEPS, n=N, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (3 + step, torch.from_numpy(rng.laplace(size=n).astype("f4"))) for step in range(steps)
    ]


def replayed(specs, grads, seed=0):
    made = [compressor(spec) if isinstance(spec, str) else spec for spec in specs]
    return list(replay_rows(grads, made, seed=seed))


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            both_unknown = (
                isinstance(value, float) and math.isnan(value) and math.isnan(other[name])
            )
            assert both_unknown or value == other[name], name


def largest(k):
    return lambda waiting, step: np.argsort(np.abs(waiting))[len(waiting) - k :]


def above_the_first(k):
    thresholds = []

    def choose(waiting, step):
        if not thresholds:
            thresholds.append(np.sort(np.abs(waiting))[-k - 1])
        return np.flatnonzero(np.abs(waiting) > thresholds[0])

    return choose


def drawn(k, seed):
    return lambda waiting, step: Rng(seed, step).shared.subset(k, len(waiting)).numpy()


def oracle(grads, choose, k, *, feedback, index_bytes):
    """What the rows must hold, for a method that sends the elements that `choose` names."""
    residual = np.zeros(N)
    for step, grad in grads:
        g = grad.double().numpy()
        waiting = residual + g if feedback else g
        places = choose(waiting, step)
        sent = np.zeros(N)
        sent[places] = waiting[places]
        if feedback:
            residual = waiting - sent
        nbytes = HEADER + len(places) * (4 + index_bytes)
        nbytes += index_bytes * len(places) >= 128  # a length of two bytes
        if not index_bytes:  # an all-reduce of the values
            nbytes = 4 * len(places)
        size = np.linalg.norm
        yield {
            "index": 0,
            "step": step,
            "n": N,
            "k": k,
            "khat_over_k": len(places) / k,
            "error": size(g - sent) / size(g),
            "error_compensated": size(waiting - sent) / size(waiting),
            "cosine": g @ sent / size(g) / size(sent),
            "nmse": (size(g - sent) / size(g)) ** 2,
            "nmse_workers": (size(g - sent) / size(g)) ** 2,
            "nbytes": nbytes,
            "bits": 8 * nbytes / N,
            "reduced_bits": 0 if index_bytes else 8 * nbytes / N,
            "wire": 0,
            "sum_bits": 0,
            "fp16_error": math.nan,
            "residual_ratio": size(residual) / size(g) if feedback else math.nan,
            "status": "ok",
        }


@pytest.mark.parametrize("feedback", [False, True], ids=["open", "ef"])
@pytest.mark.parametrize(
    ("spec", "choose", "k", "index_bytes"),
    [
        ("topk(0.05) | raw", lambda: largest(20), 20, 4),
        ("topk(0.001) | raw", lambda: largest(1), 1, 4),
        ("threshold(0.05) | raw", lambda: above_the_first(20), 20, 4),
        ("randomk(0.1)", lambda: drawn(40, 9), 40, 0),
    ],
)
def test_every_column_is_what_the_loop_gives(spec, choose, k, index_bytes, feedback):
    grads = gradients()
    expected = oracle(grads, choose(), k, feedback=feedback, index_bytes=index_bytes)
    rows = replayed([f"ef({spec})" if feedback else spec], grads, seed=9)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        numbers = {name: value for name, value in wanted.items() if name != "status"}
        assert row["status"] == "ok"
        assert {name: row[name] for name in numbers} == pytest.approx(
            numbers, rel=2e-6, abs=1e-9, nan_ok=True
        )


def test_feedback_with_nothing_held_back_has_no_residual():
    for row in replayed(["ef(none)"], gradients()):
        assert row["residual_ratio"] == row["error"] == row["error_compensated"] == 0


def test_methods_without_a_ratio_have_no_target_to_miss():
    for row in replayed(["none", "bf16", "ef(bf16)"], gradients(steps=2)):
        assert math.isnan(row["khat_over_k"])
        assert row["k"] == N


def test_feedback_around_parts_is_judged_against_the_targets_of_the_parts():
    parts = (Part("w", 300), Part("b", 100, dense=True))
    member = PerParameter(compressor("topk(0.01)"), parts)
    for each in (member, ErrorFeedback(member)):
        for row in replayed([each], gradients(steps=3)):
            assert row["k"] == 3 + 100
            assert row["khat_over_k"] == 1


def test_compressors_in_one_pass_do_not_see_each_other():
    specs = ["topk(0.05)", "ef(dgc(0.05))", "ef(sidco-e(0.05))", "ef(topk(0.05))"]
    together = replayed(specs, gradients())
    for index, spec in enumerate(specs):
        alone = [{**row, "index": index} for row in replayed([spec], gradients())]
        same([row for row in together if row["index"] == index], alone)


def test_rows_are_reproducible_by_seed_and_random_methods_follow_it():
    specs = ["randomk(0.1)", "ef(dgc(0.05))", "topk(0.1)"]
    first, again, other = (replayed(specs, gradients(), seed=seed) for seed in (1, 1, 2))
    same(first, again)
    moved = {a["index"] for a, b in zip(first, other, strict=True) if a["error"] != b["error"]}
    assert moved == {0, 1}


@pytest.mark.parametrize("places", [[0], [5], [0, 1, 5, 11]])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_gradient_is_a_row_with_a_status_and_leaves_the_state_alone(places, value):
    specs = ["ef(topk(0.05))", "threshold(0.05)"]
    grads = gradients()
    broken = [(step, grad.clone()) for step, grad in grads]
    for place in places:
        broken[place][1][[3, 7]] = value
    rows = replayed(specs, broken)
    skipped = [row for row in rows if row["status"] != "ok"]
    assert {row["step"] for row in skipped} == {3 + place for place in places}
    for row in skipped:
        assert row["status"] == f"skipped: 2 of {N} elements are NaN or inf"
        assert all(math.isnan(row[name]) for name in unmeasured(Measured) if name != "n")
    finite = [pair for place, pair in enumerate(grads) if place not in places]
    same([row for row in rows if row["status"] == "ok"], replayed(specs, finite))


def test_a_zero_gradient_has_rows_without_a_division_by_zero():
    grads = [(0, torch.zeros(N)), (1, torch.zeros(N))]
    for row in replayed(["topk(0.05)", "ef(sidco-e(0.05))", "none"], grads):
        assert row["status"] == "ok"
        assert row["error"] == row["error_compensated"] == 0
        assert math.isnan(row["cosine"])
        assert math.isnan(row["residual_ratio"])


def test_gradients_are_read_one_at_a_time_and_never_written():
    kept = gradients()
    copies = [grad.clone() for _, grad in kept]
    endless = itertools.chain(kept, itertools.repeat(kept[0]))
    rows = replay_rows(endless, [compressor("ef(topk(0.05))"), compressor("bf16")])
    assert len(list(itertools.islice(rows, 2 * STEPS))) == 2 * STEPS
    assert all(torch.equal(grad, copy) for (_, grad), copy in zip(kept, copies, strict=True))
    assert list(replay_rows([], [compressor("bf16")])) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_replayed_as_they_are(dtype):
    grads = [(step, grad.to(dtype)) for step, grad in gradients(steps=3)]
    for row in replayed(["topk(0.05)", "ef(topk(0.05))", "sidco-e(0.05)", "bf16"], grads):
        assert row["status"] == "ok"
        assert row["nbytes"] >= 20
        assert 0 <= row["error"] <= 1.5


STEADY = [1.0] * 300


@pytest.mark.parametrize(
    ("ratios", "is_settled"),
    [
        (STEADY, True),
        (STEADY[:200], True),
        (STEADY[:199], False),
        ([], False),
        ([0.0] * 300, True),
        ([math.nan] * 300, False),
        ([math.nan] * 200 + STEADY[:200], True),
        ([math.nan] * 200 + STEADY[:199], False),
        ([step / 225 for step in range(225)] + STEADY[:75], True),  # only the last quarter counts
        (STEADY[:225] + [1 + 0.08 * i / 74 for i in range(75)], False),
        (STEADY[:225] + [1 - 0.08 * i / 74 for i in range(75)], False),
        (STEADY[:225] + [1 + 0.02 * i / 74 for i in range(75)], True),
        ([1.0 + 0.1 * (-1) ** i for i in range(300)], True),  # noise around a level
        ([i**0.3 for i in range(300)], False),
        ([math.log1p(i) for i in range(30_000)], True),
        ([float(i) for i in range(30_000)], False),  # a ramp never settles, however long
    ],
)
def test_settled_means_a_flat_last_quarter_of_enough_steps(ratios, is_settled):
    assert settled(ratios) is is_settled


@pytest.mark.parametrize(("steps", "is_settled"), [(999, False), (1000, True)])
def test_every_element_has_its_turn_before_anything_is_settled(steps, is_settled):
    assert settled([1.0] * steps, target_ratio=0.001) is is_settled


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_what_a_compressor_with_feedback_sees_is_the_loop_by_hand(gamma):
    grads, residual = gradients(), torch.zeros(N)
    member = compressor(f"ef(topk(0.05), gamma={gamma})")
    for (step, seen), (at, grad) in zip(encoded(grads, member), grads, strict=True):
        waiting = gamma * residual + grad
        assert step == at
        torch.testing.assert_close(seen, waiting, rtol=1e-6, atol=1e-6)
        residual = waiting.clone()
        residual[waiting.abs().topk(20).indices] = 0


def test_settled_does_not_depend_on_the_unit():
    ramp = [1 + 0.001 * i for i in range(300)]
    noisy = list(1 + 0.05 * np.random.default_rng(0).standard_normal(300))
    for ratios in (ramp, noisy):
        assert len({settled([scale * ratio for ratio in ratios]) for scale in (1e-9, 1, 1e9)}) == 1


TIMED = ["none", "topk(0.01)", "ef(sidco-e(0.01))", "randomk(0.1)", "twoshot(mxfp8)", "ring(fp8)"]


@pytest.mark.parametrize("spec", TIMED)
def test_times_are_positive_seconds_and_the_gradient_stays(spec):
    grad = gradients(1, n=5_000)[0][1]
    before = grad.clone()
    times = time_compressor(compressor(spec), grad)
    assert times.keys() == {"encode_seconds", "decode_seconds"}
    assert all(0 < seconds < 1 for seconds in times.values())
    assert torch.equal(grad, before)


def test_a_payload_is_decoded_on_the_device_of_the_gradient(monkeypatch):
    """What is read from bytes lies on the CPU; a GPU's gradient could not be added to it."""
    moved = []

    class Read:
        def to(self, device):
            moved.append(device)
            return self

        def add_to(self, out):
            assert moved[-1] == out.device

    monkeypatch.setattr(timing, "from_bytes", lambda data: Read())
    assert time_compressor(compressor("topk(0.5)"), torch.ones(3))["decode_seconds"] >= 0


def test_a_slow_compressor_is_timed_in_a_bounded_time(monkeypatch):
    """The clock of the deadline is the one thing replaced: encoding takes a second by it."""
    now = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(now)))
    times = time_compressor(compressor("none"), torch.ones(3))
    assert times == {"encode_seconds": 1.0, "decode_seconds": 1.0}
    assert next(now) < 5 * (timing.WARM_UP + timing.REPETITIONS)
