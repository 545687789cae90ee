"""What SIDCo thresholds do with gradients that no law fits: every decision is in the result.

The column `released` is what the authors' code does (`compression.py` of sands-lab/SIDCo at commit
197f3c3, run unmodified at ratio 0.01 unless said), at M = 1 and at M >= 2 where they differ.
"""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from gradstats.kernels import compact
from gradstats.ratios import kept_count
from gradstats.thresholds import Threshold, most_stages, sidco_threshold, stage_ratios

ALL = "e p gp"
NAMES = {"e": "laplace", "p": "dgenpareto", "gp": "dgamma"}


def laplace(n):
    """Quantiles of the unit Laplace law, signs alternating."""
    magnitudes = -np.log1p(-(np.arange(n) + 0.5) / n)
    return torch.from_numpy(magnitudes * np.where(np.arange(n) % 2, -1, 1)).float()


def sparse(n, every, value=None):
    grad = torch.zeros(n)
    grad[::every] = laplace(len(grad[::every])) if value is None else value
    return grad


def poisoned(*values):
    return torch.cat([torch.tensor(values), laplace(1000)])


INPUTS = {
    "all zeros": torch.zeros(1000),
    "all equal": torch.full((1000,), -0.1),
    "one nonzero": sparse(1000, 1000, value=-3.0),
    "95 % zeros": sparse(10_000, 20),
    "a NaN": poisoned(math.nan),
    "both inf": poisoned(math.inf, -math.inf),
    "only NaN": torch.full((5,), math.nan),
    "d=1": torch.tensor([-3.0]),
    "d=10": laplace(10),
    "d=0": torch.zeros(0),
}
NOTHING = "nothing to fit: no finite non-zero element among {n}"
KEEP_ALL = "keep all: 1 non-zero elements are within the target"
STOPPED = "stopped: {exceedances} exceedances after stage {stage}"
EQUAL = "stage 1: exponential instead: cannot fit {law}: all {n} magnitudes share one bin"
LONELY = "stage 1: exponential instead: cannot fit {law}: needs 2 magnitudes for a variance, got 1"
STOPPED_1 = STOPPED.format(exceedances=0, stage=1)
STOPPED_2 = STOPPED.format(exceedances=1, stage=2)
NON_FINITE = "non-finite: {n} NaN or inf elements, not fitted but sent"

# input, variants, stages, selected (least, most), stages used (None: all), guards, released
EDGES = [
    ("all zeros", ALL, (1, 2, 3), (0, 0), 0, [NOTHING.format(n=1000)], "0; RuntimeError"),
    ("all equal", "e", (1,), (0, 0), 1, [], "0"),
    ("all equal", "e", (2, 3), (0, 0), 1, [STOPPED_1], "RuntimeError"),
    ("all equal", "p gp", (1,), (0, 0), 1, [EQUAL], "0"),
    ("all equal", "p gp", (2, 3), (0, 0), 1, [EQUAL, STOPPED_1], "RuntimeError"),
    ("one nonzero", ALL, (1, 2, 3), (1, 1), 0, [KEEP_ALL], "1; 0 at M=2; RuntimeError at M=3"),
    ("95 % zeros", ALL, (1, 2, 3), (97, 103), None, [], "E 433 7 -, P 360 15 16, GP 161 15 16"),
    ("a NaN", ALL, (1, 2, 3), (10, 12), None, [NON_FINITE.format(n=1)], "0; RuntimeError"),
    ("both inf", ALL, (1, 2, 3), (11, 13), None, [NON_FINITE.format(n=2)], "0; RuntimeError"),
    (
        "only NaN", ALL, (1, 2, 3), (5, 5), 0,
        [NON_FINITE.format(n=5), NOTHING.format(n=5)], "0; RuntimeError",
    ),
    ("d=1", "e", (1,), (0, 0), 1, [], "0"),
    ("d=1", "e", (2, 3), (0, 0), 1, [STOPPED_1], "RuntimeError"),
    ("d=1", "p", (1,), (0, 0), 1, [LONELY], "0"),
    ("d=1", "p", (2, 3), (0, 0), 1, [LONELY, STOPPED_1], "RuntimeError"),
    ("d=1", "gp", (1,), (0, 0), 1, [EQUAL], "0"),
    ("d=1", "gp", (2, 3), (0, 0), 1, [EQUAL, STOPPED_1], "RuntimeError"),
    ("d=10", ALL, (1, 2), (0, 1), None, [], "0"),
    ("d=0", ALL, (1, 2, 3), (0, 0), 0, ["empty: no element"], "0; RuntimeError"),
]  # fmt: skip
CASES = [
    pytest.param(name, variant, stages, *ours, id=f"{name}, {variant}, M={stages}, was {released}")
    for name, variants, all_stages, *ours, released in EDGES
    for variant in variants.split()
    for stages in all_stages
]  # fmt: skip


@pytest.mark.parametrize(("name", "variant", "stages", "selected", "used", "guards"), CASES)
def test_edge_cases(name, variant, stages, selected, used, guards):
    grad = INPUTS[name]
    threshold = sidco_threshold(grad, 0.01, variant=variant, stages=stages)
    assert math.isfinite(threshold.value)
    assert threshold.value >= 0
    chosen, _ = compact(grad, float(threshold))
    assert selected[0] <= len(chosen) <= selected[1]
    assert threshold.stages == (stages if used is None else used)
    expected = tuple(guard.format(law=NAMES[variant], n=len(grad)) for guard in guards)
    assert threshold.guards == expected
    assert set((~grad.isfinite()).nonzero().flatten().tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize("variant", ["e", "p", "gp"])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_non_finite_elements_do_not_move_the_threshold(variant, stages):
    """They only count towards d, of which the ratio is a share."""
    clean, settings = laplace(1000), {"variant": variant, "stages": stages}
    for grad in (poisoned(math.nan), poisoned(math.inf, -math.inf, math.nan)):
        expected = float(sidco_threshold(clean, 0.01 * len(grad) / 1000, **settings))
        assert float(sidco_threshold(grad, 0.01, **settings)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", ["e", "p", "gp"])
def test_two_exceedances_are_the_fewest_that_are_fitted(variant):
    """Released code: RuntimeError when a later stage finds nothing, NaN when it finds one."""
    threshold = sidco_threshold(laplace(10), 0.01, variant=variant, stages=3)
    assert threshold.stages == 2
    assert threshold.guards == (STOPPED_2,)
    assert len(compact(laplace(10), float(threshold))[0]) == 1


def test_stages_stop_beyond_the_end_of_bounded_magnitudes():
    """Released code: RuntimeError, seen on exactly this input at M = 3."""
    magnitudes = torch.from_numpy((np.arange(100_000) + 0.5) / 100_000)
    threshold = sidco_threshold(magnitudes, 0.001, variant="e", stages=3)
    assert threshold.guards == ("stopped: 0 exceedances after stage 2",)
    assert threshold.stages == 2
    assert threshold.value == pytest.approx(1.1167, abs=1e-3)
    assert len(compact(magnitudes, threshold.value)[0]) == 0


def test_shape_outside_the_valid_range_is_flagged_and_used():
    """Released code: silent. Uniform magnitudes have μ² = 3 s², so a = -1."""
    magnitudes = torch.from_numpy((np.arange(10_000) + 0.5) / 10_000)
    threshold = sidco_threshold(magnitudes, 0.1, variant="p")
    assert threshold.guards == (
        "stage 1: shape -1 is outside (-1/2, 1/2), where the estimate is valid",
    )
    assert threshold.value == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("variant", ["e", "p", "gp"])
@pytest.mark.parametrize("stages", [2, 3])
def test_one_stage_where_the_target_is_not_below_the_first_ratio(ratio, variant, stages):
    """Released code: k-hat/k is ratio/0.25 at M = 2: 1.2 at 0.3, 2.0 at 0.5."""
    grad = laplace(10_000)
    several = sidco_threshold(grad, ratio, variant=variant, stages=stages)
    one = sidco_threshold(grad, ratio, variant=variant)
    assert (several.value, several.stages) == (one.value, 1)
    assert several.guards == (
        f"one stage: the target {ratio:g} is not below the first ratio 0.25",
    )
    assert one.guards == ()
    assert len(compact(grad, several.value)[0]) == pytest.approx(ratio * 10_000, rel=0.005)


# share of zeros, ratio: k-hat/k of the released E, P, GP at M = 1 on Laplace magnitudes otherwise
# (derived from the released formulas: a zero counts as 2.2e-16 of the norm)
ZEROS = [
    (0.01, 0.1, (1.013, 1.010, 0.826)),
    (0.01, 0.01, (1.037, 0.977, 0.415)),
    (0.01, 0.001, (1.061, 0.896, 0.189)),
    (0.10, 0.1, (1.133, 1.107, 0.593)),
    (0.10, 0.01, (1.426, 0.836, 0.007)),
    (0.10, 0.001, (1.796, 0.346, 0.0)),
]
WITHOUT_ZEROS = {0.1: 0.9949, 0.01: 0.9791, 0.001: 0.962}  # GP misses by this on Laplace itself


@pytest.mark.parametrize(("share", "ratio", "released"), ZEROS)
def test_zeros_do_not_disturb_the_fit(share, ratio, released):
    d = 1_000_000
    grad = torch.zeros(d, dtype=torch.float64)
    grad[int(share * d) :] = laplace(d - int(share * d)).double()
    for variant, was in zip(("e", "p", "gp"), released, strict=True):
        threshold = sidco_threshold(grad, ratio, variant=variant)
        ours = len(compact(grad, threshold.value)[0]) / (ratio * d)
        expected = WITHOUT_ZEROS[ratio] if variant == "gp" else 1.0
        assert ours == pytest.approx(expected, abs=0.004), variant
        assert abs(ours - 1) < abs(was - 1)
        assert threshold.guards == ()


@pytest.mark.parametrize("nonzero", [1, 10, 100])
def test_a_target_beyond_the_nonzero_elements_keeps_them_all(nonzero):
    grad = sparse(10_000, 10_000 // nonzero, value=2.0)
    threshold = sidco_threshold(grad, 0.01)
    assert (threshold.value, threshold.stages) == (0.0, 0)
    assert threshold.guards == (f"keep all: {nonzero} non-zero elements are within the target",)
    assert torch.equal(compact(grad, threshold.value)[0], grad.nonzero().squeeze(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"target_ratio": r}, r"target_ratio must lie in \(0, 1\]") for r in (0, 2, math.nan)),
        ({"variant": "q"}, "variant must be one of e, gp, p, got 'q'"),
        *(({"stages": m}, f"stages must be a whole number from 1, got {m}") for m in (0, -1, 2.5)),
        *(({"first_ratio": r}, r"first_ratio must lie in \(0, 1\)") for r in (0, 1, -1, math.nan)),
    ],
)  # fmt: skip
def test_arguments_out_of_range(settings, message):
    arguments = {"target_ratio": 0.01} | settings
    with pytest.raises(ValueError, match=message):
        sidco_threshold(laplace(100), arguments.pop("target_ratio"), **arguments)


def test_a_threshold_is_a_frozen_number():
    threshold = sidco_threshold(laplace(1000), 0.01, stages=2)
    assert threshold == Threshold(threshold.value, 0.01, "e", 2, ())
    assert float(threshold) == threshold.value
    with pytest.raises(FrozenInstanceError):
        threshold.value = 0.0


def test_stages_are_never_fewer_than_one():
    assert most_stages(1.0) == 1
    assert stage_ratios(0.5, 4) == (0.5,)
    assert stage_ratios(0.01, 1) == (0.01,)


@pytest.mark.parametrize(("shape", "guarded"), [(-0.45, False), (-0.55, True)])
def test_a_shape_is_guarded_from_where_its_estimate_is_not_valid(shape, guarded):
    """Two magnitudes about 1 by turns: μ²/s² = 1 - 2a for the shape a."""
    off = (1 - 2 * shape) ** -0.5
    grad = torch.tensor([1 - off, 1 + off], dtype=torch.float64).repeat(5000)
    found = sidco_threshold(grad, 0.1, variant="p")
    assert any("outside (-1/2, 1/2)" in guard for guard in found.guards) == guarded


@pytest.mark.parametrize(
    ("numel", "ratio", "k"),
    [
        (100, 0.29, 29),
        (1000, 0.0016, 2),
        (1000, 0.0014, 1),
        (7, 0.9, 6),
        (7, 1.0, 7),
        (9, 1e-9, 1),
    ],
)
def test_k_is_the_nearest_whole_number_and_at_least_one(numel, ratio, k):
    """0.29 · 100 is 28.999999999999996 in float64."""
    assert kept_count(numel, ratio) == k
