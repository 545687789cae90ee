"""Trends over training, and how long a threshold may be reused."""

import math

import numpy as np
import pytest

from gradstats.fitting.threshold_reuse import Reuse, new_thresholds, reuse
from gradstats.plot.training import trend
from gradstats.summary import summarize


def test_the_trend_of_a_line_is_the_line_whatever_the_spacing():
    steps = np.array([0, 1, 5, 20, 21, 60, 100, 180])
    np.testing.assert_allclose(trend(steps, 3 - 0.5 * steps), 3 - 0.5 * steps, atol=1e-9)


def test_an_outlier_does_not_bend_the_trend():
    steps = np.arange(60.0)
    values = np.sin(steps / 60)
    spoilt = np.where(steps == 30, 50.0, values)
    assert np.abs(trend(steps, spoilt) - trend(steps, values)).max() < 0.02


def test_the_trend_follows_a_slow_change_through_noise():
    steps = np.arange(400.0)
    noisy = steps / 400 + np.random.default_rng(0).normal(0, 0.5, 400)
    assert np.abs(trend(steps, noisy) - steps / 400).max() < 0.25


def test_steps_that_were_not_measured_have_no_trend():
    values = [1.0, 2.0, math.nan, 4.0, 5.0, 6.0, math.inf]
    smooth = trend(range(7), values)
    assert np.isnan(smooth).tolist() == [False, False, True, False, False, False, True]
    assert np.isnan(trend(range(4), [1.0, 2.0, 3.0, 4.0])).all()


def gradient(scale, n=200_000):
    """The quantiles of a Laplace law: no sampling error."""
    return summarize((-scale * np.log((np.arange(n) + 0.5) / n)).astype(np.float32))


def test_a_new_threshold_keeps_what_it_should():
    summary = gradient(1.0)
    for each in new_thresholds(7, "model", summary, [0.1, 0.01]):
        assert (each.step, each.last_good, each.ended, each.group) == (7, 7, -1, "model")
        assert summary.kept(each.threshold) == pytest.approx(each.target_ratio * 200_000, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "ratio"),
    [([0.0] * 100, 0.1), ([1.0] + [0.0] * 99, 0.1), ([1.0, 2.0], 0.5), ([], 0.5)],
)
def test_no_threshold_is_followed_that_cannot_keep_k(values, ratio):
    assert list(new_thresholds(0, "model", summarize(np.float32(values)), [ratio])) == []


def test_a_threshold_holds_until_the_scale_has_moved_too_far():
    """A Laplace scale that grows by 1 % a step: k̂/k = r^(1/1.01^t - 1) leaves 1.2 at a known t."""
    ratio, growth = 0.01, 1.01
    drift = math.log(1.2) / -math.log(ratio)  # 1 - 1/scale at which k̂/k is 1.2
    expected = math.floor(-math.log(1 - drift) / math.log(growth))
    followed = list(new_thresholds(0, "a", gradient(1.0), [ratio]))
    for step in range(1, 10):
        followed = reuse(followed, step, "a", gradient(growth**step))
    (each,) = followed
    assert each.row["reusable_steps"] == each.last_good == expected
    assert each.ended == expected + 1
    assert each.khat_over_k > 1.2


def test_only_thresholds_of_the_group_are_tried_and_nothing_ends_without_a_gradient():
    start = [Reuse("a", 0, 0.1, 1.0, 0), Reuse("b", 0, 0.1, 1.0, 0)]
    tried = reuse(start, 5, "a", gradient(100.0))
    assert [each.ended for each in tried] == [5, -1]
    assert reuse(start, 5, "a", summarize(np.zeros(10, np.float32))) == start
    ended = reuse(tried, 6, "a", gradient(1.0))
    assert ended[0] == tried[0]  # what has ended stays so
