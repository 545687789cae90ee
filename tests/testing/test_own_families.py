"""Newcomers' families: the suite accepts correct ones, and says of broken ones what is wrong."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from gradstats.fitting.rows import fit_rows
from gradstats.summary import summarize
from gradstats.testing import check_family, family_checks
from tests.testing.own_families import (
    CATALAN,
    CORRECT,
    Cauchy,
    HypSecant,
    TwoSidedLomax,
)


@pytest.mark.parametrize("distribution", CORRECT, ids=repr)
def test_the_suite_accepts_a_correct_family(distribution):
    check_family(distribution)


def test_the_families_are_those_of_scipy():
    """By scipy's own numbers, not by the suite under test."""
    x = np.array([-3.0, -0.1, 0.0, 0.2, 5.0])
    for law, oracle in (
        (HypSecant(2.0), stats.hypsecant(scale=2.0)),
        (Cauchy(0.5), stats.cauchy(scale=0.5)),
    ):
        np.testing.assert_allclose(law.pdf(x), oracle.pdf(x), rtol=1e-12)
        np.testing.assert_allclose(law.cdf(x), oracle.cdf(x), rtol=1e-12)
    mean = stats.hypsecant.expect(abs, lb=-60, ub=60)
    assert mean == pytest.approx(4 * CATALAN / math.pi, rel=1e-9)


def test_they_are_fitted_like_any_other():
    rng = np.random.default_rng(0)
    for law in (HypSecant(0.02), TwoSidedLomax(3.0, 0.5), Cauchy(2.0)):
        summary = summarize(law.rvs(100_000, rng))
        (row,) = fit_rows(summary, families=[type(law)], ratios=[0.01])
        assert row["status"] == "ok"
        assert row["scale"] == pytest.approx(law.scale, rel=0.05)
        assert row["khat_over_k"] == pytest.approx(1, abs=0.15)


@dataclass(frozen=True)
class ShiftedMedian(HypSecant):
    """Its quantiles lie 1e-6 scales too high: also those that are 0."""

    def threshold(self, ratio):
        return super().threshold(ratio) + 1e-6 * self.scale


@dataclass(frozen=True)
class WrongConstant(HypSecant):
    def logpdf(self, x):
        return super().logpdf(x) + 1e-8


@dataclass(frozen=True)
class TailOfOneMinus(HypSecant):
    """Takes the tail as 1 - cdf."""

    def log_kept(self, magnitude):
        with np.errstate(divide="ignore"):
            return np.log1p(-(1 - np.exp(super().log_kept(magnitude))))


@dataclass(frozen=True)
class OtherScale(HypSecant):
    def scipy(self):
        return stats.hypsecant(scale=self.scale * (1 + 1e-6))


@dataclass(frozen=True)
class RootMeanSquare(HypSecant):
    @classmethod
    def from_moments(cls, moments):
        return cls(math.sqrt(moments.mean**2 + moments.var))


@dataclass(frozen=True)
class WithoutMoments(TwoSidedLomax):
    """Names an estimator that it does not have."""

    methods = ("moments", "mle")


@dataclass(frozen=True)
class NotSoHeavy(TwoSidedLomax):
    tail_index = math.inf


@dataclass(frozen=True)
class Divides(HypSecant):
    def threshold(self, ratio):
        return 1 // 0


@dataclass(frozen=True)
class HalfOff(HypSecant):
    """Breaks three laws by one constant each."""

    def log_scale(self, logs, weights):
        return super().log_scale(logs, weights) + 0.5

    def rvs(self, size, rng):
        return super().rvs(size, rng) * 1.5

    def kept(self, magnitude):
        return np.nan_to_num(super().kept(magnitude))


SAID = {
    ShiftedMedian(2.0): r"scipy: .*isf = scipy\(\).isf, at 0.5: got 2\.0\d*e-06, expected \d",
    WrongConstant(2.0): r"scipy: pdf = scipy\(\).pdf, at [-\d.e]+: got \d.*expected \d.* points\)",
    TailOfOneMinus(2.0): r"tail: kept\(threshold\(ratio\)\) = ratio, at .*: got .*expected .*e-08",
    OtherScale(2.0): r"scipy: kept = 2 scipy\(\).sf, at \d.*: got .*, expected ",
    RootMeanSquare(2.0): r"estimators: moments recovers .*got RootMeanSquare.* at 0.01: got 0.00",
    WithoutMoments(4.5, 1.0): r"estimators: no call fails, .*no from_moments.* in from_moments",
    NotSoHeavy(4.5, 1.0): r"contract: tail_index is .*, got inf, log_kept falls by 4\.[45]",
    Divides(2.0): r"tail: no call fails, got ZeroDivisionError.* in threshold \(test_own_fam",
    HalfOff(2.0): r"scales: log_scale finds the scale, got 3.29\d*, expected 2.0",
}


@pytest.mark.parametrize("distribution", SAID, ids=repr)
def test_the_message_has_law_function_point_value_and_expected(distribution):
    with pytest.raises(AssertionError, match=SAID[distribution]) as caught:
        check_family(distribution)
    assert all(
        line.startswith(f"{distribution!r} must obey the law ")
        for line in str(caught.value).split("\n")
    )


@pytest.mark.parametrize("distribution", SAID, ids=repr)
def test_all_broken_laws_are_in_one_message(distribution):
    """Each law alone says the same as in the message of all."""
    alone = []
    for _, check in family_checks(distribution):
        try:
            check()
        except AssertionError as error:
            alone.append(str(error))
    with pytest.raises(AssertionError) as caught:
        check_family(distribution)
    assert str(caught.value).split("\n") == alone


def test_an_estimator_that_fails_does_not_hide_the_other():
    @dataclass(frozen=True)
    class BothWrong(HypSecant):
        @classmethod
        def from_moments(cls, moments):
            raise KeyError("no idea")

        @classmethod
        def from_likelihood(cls, summary):
            return cls(1.0)

    with pytest.raises(AssertionError) as caught:
        check_family(BothWrong(2.0))
    assert "KeyError('no idea')" in str(caught.value)
    assert "mle recovers the distribution from its quantiles, got" in str(caught.value)
