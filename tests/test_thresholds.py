"""SIDCo thresholds against the authors' released code, closed forms and invariants.

Golden numbers: `compression.py` of the authors' repository sands-lab/SIDCo at commit 197f3c3, run
unmodified on the quantile grids below (n = 1,000,000, float64, alternating signs).
"""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from gradstats import kernels
from gradstats.families import DGamma, DGenPareto, Laplace
from gradstats.kernels import compact
from gradstats.summary import Moments, summarize
from gradstats.thresholds import (
    Stages,
    exponential_threshold,
    most_stages,
    sidco_threshold,
    stage_ratios,
)

N = 1_000_000
RATIOS = (0.1, 0.01, 0.001)
LAWS = {
    "laplace": lambda u: -np.log1p(-u),
    "gamma 0.5": lambda u: special.gammaincinv(0.5, u),
    "gamma 1.5": lambda u: special.gammaincinv(1.5, u),
    "gamma 2": lambda u: special.gammaincinv(2.0, u),
    "gpd 0.2": lambda u: stats.genpareto(0.2).ppf(u),
    "gpd 0.3": lambda u: stats.genpareto(0.3).ppf(u),
    "gpd 0.45": lambda u: stats.genpareto(0.45).ppf(u),
    "halfnormal": lambda u: special.ndtri((1 + u) / 2),
}


@cache
def grid(law):
    """The Summary and the sorted magnitudes of a law's quantile grid."""
    magnitudes = LAWS[law]((np.arange(N) + 0.5) / N)
    signs = np.where(np.arange(N) % 2, -1.0, 1.0)
    return summarize(magnitudes * signs), magnitudes


@cache
def khat_over_k(law, variant, ratio, stages):
    summary, magnitudes = grid(law)
    threshold = sidco_threshold(summary, ratio, variant=variant, stages=stages)
    assert (threshold.stages, threshold.variant) == (stages, variant)
    return (N - np.searchsorted(magnitudes, float(threshold), "right")) / (ratio * N)


# law: ratio: E at M = 1..4, P at M = 1..4, GP with the exact inverse at M = 1..3
RELEASED = {
    "laplace": (
        "1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 0.9949 0.9999 0.9999",
        "1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 0.9791 1.0000 0.9999",
        "1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000 0.962 1.000 1.000",
    ),
    "gamma 0.5": (
        "1.2916 0.9235 0.9056 0.8999 1.2651 1.0543 1.0402 1.0353 0.9951 0.9973 0.9848",
        "3.1876 1.0982 0.9461 0.9029 1.0868 1.1010 1.0798 1.0574 0.9718 1.0391 1.0201",
        "8.582 1.480 1.069 0.966 0.196 0.955 1.109 1.091 0.946 0.907 1.046",
    ),
    "gpd 0.2": (
        "1.0297 0.8053 0.7637 0.7491 1.0000 0.9995 0.9993 0.9992 0.9496 0.9050 0.9048",
        "2.1703 1.1799 0.7680 0.6397 1.0011 1.0006 0.9989 0.9977 1.6921 0.9060 0.9044",
        "6.632 2.956 1.188 0.773 1.003 1.004 1.002 0.998 4.620 0.909 0.907",
    ),
    "halfnormal": (
        "0.6618 1.1676 1.2115 1.2250 0.9075 0.9433 0.9552 0.9594 0.8829 1.0902 1.1052",
        "0.0238 0.6324 1.1267 1.2972 1.6255 0.9170 0.9166 0.9386 0.1548 1.0592 1.0568",
        "0.000 0.099 0.698 1.056 6.880 1.224 0.895 0.903 0.004 1.454 1.032",
    ),
}
COLUMNS = [("e", m) for m in (1, 2, 3, 4)] + [("p", m) for m in (1, 2, 3, 4)]
COLUMNS += [("gp", m) for m in (1, 2, 3)]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("law", RELEASED)
def test_selects_as_the_released_code(law, ratio):
    """Within 2 % or three elements: they locate a stage at its smallest exceedance, we do not."""
    released = [float(cell) for cell in RELEASED[law][RATIOS.index(ratio)].split()]
    slack = 3 / (ratio * N)
    for (variant, stages), expected in zip(COLUMNS, released, strict=True):
        ours = khat_over_k(law, variant, ratio, stages)
        assert ours == pytest.approx(expected, rel=0.02, abs=slack), (variant, stages)


@pytest.mark.parametrize(
    ("law", "variant", "expected"),
    [  # closed forms: Q(2, 2L)/δ, and (1 + ξL/(1 - ξ))^(-1/ξ)/δ with L = ln(1/δ)
        ("gamma 2", "e", (0.5605, 0.1021, 0.0148)),
        ("gpd 0.3", "e", (1.0142, 2.6447, 10.1745)),
        ("gpd 0.45", "e", (0.9502, 3.1089, 14.8336)),
        ("halfnormal", "p", (0.9075, 1.6255, 6.8804)),
    ],
)
def test_one_stage_has_its_population_value(law, variant, expected):
    for ratio, value in zip(RATIOS, expected, strict=True):
        ours = khat_over_k(law, variant, ratio, 1)
        assert ours == pytest.approx(value, rel=0.002, abs=1 / (ratio * N))


@pytest.mark.parametrize(
    ("law", "expected"),
    [  # η' = η + e(η) ln(1/δ_m) with the mean excess e of the law, M = 1..6, δ = 0.001
        ("gpd 0.2", (6.6317, 2.9555, 1.1872, 0.7727, 0.6009, 0.5093)),
        ("gamma 0.5", (8.5823, 1.4798, 1.0693, 0.9660, 0.9202, 0.8946)),
        ("gamma 1.5", (0.1202, 0.7629, 0.9226, 0.9744, 0.9992, 1.0138)),
        ("halfnormal", (0.00004, 0.0992, 0.6977, 1.0561, 1.2608, 1.3911)),
    ],
)
def test_more_exponential_stages_drift_past_one(law, expected):
    for stages, value in enumerate(expected, start=1):
        ours = khat_over_k(law, "e", 0.001, stages)
        assert ours == pytest.approx(value, rel=0.002, abs=0.0011)  # 0.001 is one element


@pytest.mark.parametrize(
    ("shape", "estimate"),
    [
        (0.3, 0.295905),
        (0.5, 0.493026),
        (0.7, 0.691603),
        (0.9, 0.891036),
        (1.0, 0.990942),  # Laplace is estimated as 0.991, not 1: s is Euler's constant
        (1.5, 1.491324),
        (2.0, 1.992143),
    ],
)
@pytest.mark.slow
def test_closed_form_gamma_shape(shape, estimate):
    s = math.log(shape) - special.digamma(shape)
    law = DGamma.from_moments(Moments(N, 1.0, 1 / shape, -s))
    assert law.shape == pytest.approx(estimate, abs=1e-6)
    magnitudes = special.gammaincinv(shape, (np.arange(N) + 0.5) / N)
    assert DGamma.fit(magnitudes, method="moments").shape == pytest.approx(estimate, rel=1e-4)


def test_moment_estimate_on_half_normal_magnitudes():
    law = DGenPareto.fit(grid("halfnormal")[0], method="moments")
    assert law.parameters == pytest.approx({"shape": -0.375969, "scale": 1.097865}, abs=2e-5)


def trace(rule, ratio, windows, khat_at):
    """(M, k-hat/k) of each window of 5 steps on a gradient that does not change."""
    stages, seen = Stages(rule=rule), []
    for _ in range(windows):
        seen.append((stages.count, khat_at(stages.count)))
        for _ in range(5):
            stages = stages.update(khat_at(stages.count), target_ratio=ratio)
    return seen


# modes -1, -2, -3 of the released code are the rules step, reverse, escape; the last pair stays
STAYING = [
    ("halfnormal", "e", 0.1, "step", [(1, 0.662), (2, 1.168)]),
    ("halfnormal", "e", 0.01, "step", [(1, 0.024), (2, 0.632), (3, 1.127)]),
    ("halfnormal", "e", 0.001, "step", [(1, 0.000), (2, 0.099), (3, 0.698), (4, 1.056)]),
    ("gamma 0.5", "p", 0.001, "step", [(1, 0.196), (2, 0.955)]),
    ("gamma 0.5", "e", 0.001, "step", [(1, 8.582)]),  # over-selects and cannot leave M = 1
    ("gamma 0.5", "e", 0.001, "reverse", [(1, 8.582)]),
    ("gamma 0.5", "e", 0.001, "escape", [(1, 8.582), (1, 8.582), (2, 1.480), (3, 1.069)]),
    ("halfnormal", "p", 0.001, "escape", [(1, 6.880), (1, 6.880), (2, 1.224), (3, 0.895)]),
]


@pytest.mark.parametrize(("law", "variant", "ratio", "rule", "released"), STAYING)
def test_adaptation_traces(law, variant, ratio, rule, released):
    expected = released + released[-1:] * 4
    ours = trace(rule, ratio, len(expected), lambda count: khat_over_k(law, variant, ratio, count))
    assert [count for count, _ in ours] == [count for count, _ in expected]
    assert [khat for _, khat in ours] == pytest.approx(
        [khat for _, khat in expected], rel=0.02, abs=3 / (ratio * N)
    )


@pytest.mark.parametrize(
    ("ratio", "rule", "khat", "counts"),
    [  # k-hat/k at M = 1, 2 … of the released GP with the approximate inverse, which we do not use
        (0.01, "step", (0.544, 1.463), [1, 2, 1, 2, 1, 2]),
        (0.001, "step", (0.035, 2.177), [1, 2, 1, 2, 1, 2]),
        (0.001, "step", (0.343, 0.746, 0.840), [1, 2, 3, 3, 3, 3]),
        (0.1, "step", (0.615, 0.754, 0.726, 0.716), [1, 2, 3, 4, 4, 4]),
        # made up: worse at M = 2, so `reverse` turns back, for good; better, so `escape` goes on
        (0.01, "reverse", (0.5, 0.3), [1, 2, 1, 1, 1]),
        (0.01, "escape", (0.5, 0.6, 0.7, 0.9), [1, 2, 3, 4, 4]),
    ],
)
def test_adaptation_rules(ratio, rule, khat, counts):
    assert [m for m, _ in trace(rule, ratio, len(counts), lambda m: khat[m - 1])] == counts


@pytest.mark.parametrize(
    ("previous", "mean", "direction"),
    [
        (0.5, 0.6, 1),  # rose from below the band: the last move helped
        (0.5, 0.5, -1),  # stayed
        (0.5, 0.4, -1),
        (0.8, 0.9, -1),  # the band's own edge moves nothing, so nothing helped
        (1.0, 0.5, -1),
        (1.2, 1.1, -1),
        (2.0, 1.5, 1),  # fell from above it
        (2.0, 2.0, -1),
        (2.0, 2.5, -1),
        (None, 0.5, 1),  # the first window
    ],
)
def test_escape_turns_unless_the_last_move_helped(previous, mean, direction):
    stages = Stages(count=3, rule="escape", previous=previous)
    for _ in range(5):
        stages = stages.update(mean, target_ratio=0.001)
    assert stages.direction == direction
    outside = (mean < 0.8) - (mean > 1.2)
    assert stages.count == 3 + outside * direction


@pytest.mark.parametrize(("khat", "count"), [(0.8, 3), (1.2, 3), (0.79, 4), (1.21, 2)])
def test_the_edges_of_the_band_are_in_it(khat, count):
    stages = Stages(count=3)
    for _ in range(5):
        stages = stages.update(khat, target_ratio=0.001)
    assert stages.count == count


def test_adaptation_decides_on_the_mean_of_five_steps():
    stages = Stages(count=3)
    for khat in (0.1, 0.1, 5.0, 0.1):
        stages = stages.update(khat, target_ratio=0.01)
        assert (stages.count, stages.previous) == (3, None)
    decided = stages.update(0.1, target_ratio=0.01)  # mean 1.08: within 1 ± 0.2
    assert (decided.count, decided.window, decided.previous) == (3, (), pytest.approx(1.08))
    assert stages.update(1.0, target_ratio=0.01).count == 2  # mean 1.26; `stages` is untouched


@given(st.lists(st.floats(0, 50), max_size=80), st.sampled_from(["step", "reverse", "escape"]))
def test_stages_stay_in_their_range(khats, rule):
    stages = Stages(rule=rule)
    for khat in khats:
        stages = stages.update(khat, target_ratio=0.01)
        assert 1 <= stages.count <= most_stages(0.01) == 7


@given(st.floats(1e-6, 1.0), st.integers(1, 9), st.floats(0.05, 0.5))
def test_stage_ratios_multiply_to_the_target(ratio, stages, first):
    ratios = stage_ratios(ratio, stages, first)
    assert math.prod(ratios) == pytest.approx(ratio, rel=1e-12)
    assert len(ratios) == (1 if ratio >= first else stages)
    assert all(0 < part <= 1 for part in ratios)


SEEDS = st.integers(0, 2**32 - 1)
VARIANTS = st.sampled_from(["e", "p", "gp"])


def draw(seed, n=4000):
    rng = np.random.default_rng(seed)
    values = rng.gamma(rng.uniform(0.3, 2), size=n) * rng.choice([-1, 1], n)
    return torch.from_numpy(values).float()


@given(SEEDS, VARIANTS, st.integers(1, 4), st.integers(-30, 30))
def test_sign_and_binary_unit_change_nothing(seed, variant, stages, exponent):
    grad = draw(seed)
    value = float(sidco_threshold(grad, 0.02, variant=variant, stages=stages))
    for other, unit in ((-grad, 1.0), (grad.abs(), 1.0), (grad * 2.0**exponent, 2.0**exponent)):
        scaled = float(sidco_threshold(other, 0.02, variant=variant, stages=stages))
        assert scaled == pytest.approx(value * unit, rel=1e-12)


@given(SEEDS, VARIANTS, st.integers(1, 4), st.floats(1e-6, 1e6))
def test_the_unit_matters_up_to_the_grid(seed, variant, stages, unit):
    """Mean and variance are exact; mean ln|g| and later stages rest on bins of width 1/128."""
    grad = draw(seed)
    value = float(sidco_threshold(grad, 0.02, variant=variant, stages=stages))
    scaled = float(sidco_threshold(grad * unit, 0.02, variant=variant, stages=stages))
    slack = 0.01 if stages > 1 else 0.001 if variant == "gp" else 1e-5
    assert scaled == pytest.approx(value * unit, rel=slack)


@given(SEEDS, VARIANTS, st.integers(1, 4), st.floats(0.001, 1.0))
def test_selection_is_a_threshold_set(seed, variant, stages, ratio):
    grad = draw(seed)
    threshold = sidco_threshold(grad, ratio, variant=variant, stages=stages)
    chosen, _ = compact(grad, float(threshold))
    dropped = grad.abs().index_fill(0, chosen, 0.0).max()
    assert torch.all(grad[chosen].abs() > dropped)
    assert threshold == sidco_threshold(summarize(grad), ratio, variant=variant, stages=stages)


@given(SEEDS, VARIANTS, st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_one_stage_is_monotone_in_the_ratio(seed, variant, one, other):
    grad = draw(seed)
    low, high = sorted((one, other))
    thresholds = [float(sidco_threshold(grad, r, variant=variant)) for r in (low, high)]
    assert thresholds[0] >= thresholds[1]


@given(st.floats(1e-3, 1e3), st.floats(1e-6, 1.0))
def test_p_meets_e_where_mean_squared_is_the_variance(mean, ratio):
    moments = Moments(1000, mean, mean * mean)
    p, e = DGenPareto.from_moments(moments), Laplace.from_moments(moments)
    assert float(p.threshold(ratio)) == pytest.approx(float(e.threshold(ratio)), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("n", [1, 700, 20_000, 2**19 + 5])
def test_sums_alone_give_the_threshold_of_one_exponential(n, zeros, scale):
    generator = torch.Generator().manual_seed(n)
    grad = torch.empty(n).exponential_(generator=generator) * scale
    grad[torch.rand(n, generator=generator) < zeros] = 0
    for ratio in RATIOS:
        expected = sidco_threshold(grad, ratio).value
        sums = kernels.sum_magnitudes(grad)
        assert exponential_threshold(sums.total, sums.nonzero, n, ratio) == expected
