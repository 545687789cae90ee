"""Numbers of the released codes and of closed forms, on inputs without random numbers."""

import math

import pytest
import torch

from gradstats.compressors import Rng, compressor

RATIOS = (0.1, 0.01, 0.001)

# k̂/k of the code released with SIDCo, run on the grid of a million elements in float64.
RELEASED = {
    "gaussiank": {
        "laplace": (0.7102, 6.8436, 0.064),
        "gamma 0.5": (0.6819, 0.8316, 0.362),
        "gpd 0.2": (0.9981, 0.8077, 1.039),
        "halfnormal": (0.7355, 7.7906, 36.971),
    },
    "redsync": {
        "laplace": (0.6798, 1.2561, 2.321),
        "gamma 0.5": (0.4462, 0.1484, 1.484),
        "gpd 0.2": (0.0230, 0.2303, 2.303),
        "halfnormal": (0.1715, 1.7147, 0.580),
    },
}
CASES = [
    (name, law, ratio, golden)
    for name, laws in RELEASED.items()
    for law, values in laws.items()
    for ratio, golden in zip(RATIOS, values, strict=True)
]


def count(spec, grad):
    member = compressor(spec)
    return member.encode(grad, member.init(grad), Rng())[0].count


@pytest.mark.parametrize(("name", "law", "ratio", "golden"), CASES)
@pytest.mark.slow
def test_counts_are_those_of_the_released_code(grid, name, law, ratio, golden):
    """Within 2 % or three elements; our counts inside the loops are interpolated in a bin."""
    k = 1_000_000 * ratio
    assert abs(count(f"{name}({ratio})", grid(law)) - golden * k) <= max(0.02 * golden * k, 3)


# ‖x - C(x)‖²/‖x‖² of an infinite sample, ratio and L = ln 1/ratio, z = Φ⁻¹(1 - ratio/2).
TOP_K_ERROR = {
    "halfnormal": (0.5607, 0.9155, 0.9873),  # 1 - (ratio + 2 z φ(z))
    "laplace": (0.4046, 0.8379, 0.9682),  # 1 - ratio (1 + L + L²/2)
}


@pytest.mark.parametrize("law", TOP_K_ERROR)
def test_the_error_of_top_k_is_the_closed_form(grid, law):
    """A million quantiles miss the tail beyond the last: 2e-4 of the energy at most."""
    grad = grid(law)
    for ratio, closed in zip(RATIOS, TOP_K_ERROR[law], strict=True):
        payload, _ = compressor(f"topk({ratio})").encode(grad, None)
        error = (grad - payload.decode()).square().sum() / grad.square().sum()
        assert float(error) == pytest.approx(closed, abs=2e-4)


def test_the_closed_forms_are_written_down_right():
    for ratio, closed in zip(RATIOS, TOP_K_ERROR["laplace"], strict=True):
        log = math.log(1 / ratio)
        assert 1 - ratio * (1 + log + log * log / 2) == pytest.approx(closed, abs=5e-5)


@pytest.mark.parametrize("law", ["laplace", "gamma 0.5", "gpd 0.2", "halfnormal"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_dgc_keeps_near_k_on_every_law(grid, law, ratio):
    """0.8 k and 1.3 k are the bounds inside which the method leaves its threshold alone."""
    assert 0.8 <= count(f"dgc({ratio})", grid(law)) / (1_000_000 * ratio) <= 1.3


def mostly_zero():
    grad = torch.zeros(100_000)
    where = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))[:50]
    grad[where] = torch.linspace(-1, 1, 50) + 0.01
    return grad


@pytest.mark.parametrize("ratio", [0.1, 0.01, 0.001])
def test_dgc_sends_the_non_zeros_of_a_mostly_zero_gradient_and_no_more(ratio):
    """The sampled threshold is 0; the code in the field then sends all 100,000."""
    assert count(f"dgc({ratio})", mostly_zero()) == 50


def test_dgc_trims_by_magnitude_and_not_by_position():
    """A rising gradient: a cut of the index list would keep the smallest of the selected."""
    grad, counts = torch.linspace(0, 1, 10_000), set()
    for seed in range(20):
        payload, _ = compressor("dgc(0.01)").encode(grad, None, Rng(seed=seed))
        counts.add(payload.count)
        assert 80 <= payload.count <= 130
        assert int(payload.indices.min()) == 10_000 - payload.count
    assert 100 in counts  # the trim was needed


def test_red_sync_evaluates_at_most_three_thresholds(grid):
    """The last threshold stands at an eighth of the way from the mean to the maximum."""
    grad = grid("laplace")
    mean, largest = float(grad.abs().mean()), float(grad.abs().max())
    allowed = [int((grad.abs() > mean + i / 8 * (largest - mean)).sum()) for i in range(1, 8)]
    for ratio in (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5):
        assert count(f"redsync({ratio})", grad) in allowed
