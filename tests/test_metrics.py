"""Metrics against numpy in float64, and at the ends of their range."""

import math

import numpy as np
import pytest
import torch

from gradstats import metrics

GRAD = torch.randn(1000, generator=torch.Generator().manual_seed(0))
NEAR = GRAD + 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(1))


def test_metrics_are_those_of_numpy():
    x, y = GRAD.double().numpy(), NEAR.double().numpy()
    norm = np.linalg.norm
    assert metrics.relative_error(GRAD, NEAR) == pytest.approx(norm(x - y) / norm(x), rel=1e-14)
    assert metrics.cosine(GRAD, NEAR) == pytest.approx(x @ y / norm(x) / norm(y), rel=1e-14)


def test_shape_and_dtype_do_not_matter():
    square, bf16 = GRAD.reshape(20, 50), GRAD.bfloat16()
    assert metrics.cosine(square, NEAR.reshape(20, 50)) == pytest.approx(
        metrics.cosine(GRAD, NEAR), rel=1e-14
    )
    assert metrics.relative_error(GRAD, bf16) == metrics.relative_error(GRAD, bf16.float())
    assert 0 < metrics.relative_error(GRAD, bf16) < 2**-8


def test_sums_do_not_overflow_or_vanish_in_the_gradients_dtype():
    big = torch.full((4,), 6e4, dtype=torch.float16)
    assert metrics.cosine(big, -big) == pytest.approx(-1)
    assert metrics.relative_error(torch.full((4,), 1e-30), torch.zeros(4)) == 1


def test_nothing_sent_and_nothing_to_send():
    zero, one = torch.zeros(3), torch.ones(3)
    assert metrics.relative_error(one, zero) == 1
    assert metrics.relative_error(zero, zero) == 0
    assert metrics.relative_error(zero, one) == math.inf
    assert metrics.relative_error(torch.zeros(0), torch.zeros(0)) == 0
    assert math.isnan(metrics.cosine(one, zero))
    assert math.isnan(metrics.cosine(zero, zero))


def test_non_finite_reconstructions_show():
    assert math.isnan(metrics.relative_error(GRAD, GRAD * torch.nan))
    assert metrics.relative_error(torch.ones(2), torch.tensor([torch.inf, 1.0])) == math.inf


def test_scale_changes_the_error_but_not_the_cosine():
    assert metrics.cosine(GRAD, 3 * GRAD) == pytest.approx(1)
    assert metrics.relative_error(GRAD, 3 * GRAD) == pytest.approx(2)


def test_closeness_is_what_numpy_says_of_gradient_sent_and_residual():
    generator = torch.Generator().manual_seed(2)
    residual = torch.randn(1000, generator=generator)
    g, s, e = (each.double().numpy() for each in (GRAD, NEAR, residual))
    norm = np.linalg.norm
    open_loop = metrics.closeness(GRAD, NEAR, None)
    assert open_loop["error"] == pytest.approx(norm(g - s) / norm(g), rel=1e-12)
    assert open_loop["error_compensated"] == open_loop["error"]
    assert open_loop["cosine"] == pytest.approx(metrics.cosine(GRAD, NEAR), rel=1e-14)
    assert math.isnan(open_loop["residual_ratio"])
    fed_back = metrics.closeness(GRAD, NEAR, residual)
    assert fed_back["error_compensated"] == pytest.approx(norm(e) / norm(s + e), rel=1e-12)
    assert fed_back["residual_ratio"] == pytest.approx(norm(e) / norm(g), rel=1e-12)


def test_closeness_of_the_gradient_itself_is_exactly_zero_error():
    assert metrics.closeness(GRAD, GRAD, None)["error"] == 0
    nothing = metrics.closeness(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    assert (nothing["error"], nothing["error_compensated"]) == (0, 0)
    assert math.isnan(nothing["cosine"])
    assert math.isnan(nothing["residual_ratio"])
