"""The law suites must reject members that break one promise each."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from gradstats.families import DWeibull, Family, Laplace
from gradstats.summary import summarize
from gradstats.testing import check_family, family_checks
from gradstats.testing.gradients import extremal
from tests.testing.test_compressor_laws import fails


@dataclass(frozen=True)
class OneSided(Laplace):
    def kept(self, magnitude):
        return super().kept(magnitude) / 2


@dataclass(frozen=True)
class DensityOfMagnitudes(Laplace):
    def logpdf(self, x):
        return super().logpdf(x) + math.log(2)


@dataclass(frozen=True)
class Skewed(Laplace):
    def logpdf(self, x):
        return super().logpdf(x) + 1e-12 * np.sign(x)


@dataclass(frozen=True)
class WrongInverse(Laplace):
    def threshold(self, ratio):
        return super().threshold(ratio) * (1 + 1e-8)


@dataclass(frozen=True)
class Underflowing(Laplace):
    def log_kept(self, magnitude):
        with np.errstate(divide="ignore"):
            return np.log(np.exp(super().log_kept(magnitude)))


@dataclass(frozen=True)
class OtherUnits(Laplace):
    def scipy(self):
        return stats.laplace(scale=2 * self.scale)


@dataclass(frozen=True)
class MedianAsMean(Laplace):
    @classmethod
    def from_likelihood(cls, summary):
        return cls(summary.quantile(0.5))


@dataclass(frozen=True)
class Credulous(Laplace):
    @classmethod
    def fit(cls, data, *, method="mle"):
        return cls(summarize(data).total_abs / max(1, summarize(data).n))


@dataclass(frozen=True)
class OwnRandomness(Laplace):
    def rvs(self, size, rng):
        return super().rvs(size, np.random.default_rng())


@dataclass(frozen=True)
class PowerLawInWords(Laplace):
    @property
    def tail_index(self):
        return 3.0


@dataclass(frozen=True)
class OffScale(Laplace):
    def log_scale(self, logs, weights):
        return super().log_scale(logs, weights) + 0.1


@dataclass(frozen=True)
class BoundsOfAnother(Laplace):
    bounds = {"shape": (0.1, 5.0)}


@dataclass(frozen=True)
class SilentAtItsBound(DWeibull):
    at_bound = ()


@dataclass(frozen=True)
class OutOfItsBounds(DWeibull):
    bounds = {"shape": (3.0, 5.0)}


@dataclass
class Mutable(Family):
    scale: float
    name = "mutable"
    from_moments = from_likelihood = classmethod(lambda cls, moments: cls(moments.mean))
    logpdf, log_kept, threshold, scipy = (
        getattr(Laplace, method) for method in ("logpdf", "log_kept", "threshold", "scipy")
    )


@pytest.mark.parametrize(
    ("cheat", "promise"),
    [
        (SilentAtItsBound, "at the end of its search is at_bound"),
        (OutOfItsBounds, "lie in the bounds of its search"),
    ],
)
def test_the_suite_rejects_a_shape(cheat, promise):
    with pytest.raises(AssertionError, match=promise):
        check_family(cheat(1.0, 2.0))


@pytest.mark.parametrize(
    ("cheat", "promise"),
    [
        (OneSided, r"kept\(0\) = 1"),
        (DensityOfMagnitudes, "pdf = scipy"),
        (Skewed, r"pdf\(-x\) = pdf\(x\)"),
        (WrongInverse, r"kept\(threshold\(ratio\)\) = ratio"),
        (Underflowing, "density is 0 where nothing is kept"),
        (OtherUnits, "kept = 2 scipy"),
        (MedianAsMean, "mle recovers the distribution"),
        (Credulous, "raises FitError without a magnitude"),
        (OwnRandomness, "depends on the generator alone"),
        (Mutable, "parameters are frozen"),
        (PowerLawInWords, "tail_index is the power"),
        (BoundsOfAnother, "bounds are of its parameters"),
    ],
)
def test_the_suite_rejects(cheat, promise):
    with pytest.raises(AssertionError, match=promise):
        check_family(cheat(2.0))


BREAKS = {
    OneSided: "tail scipy estimators randomness arguments",
    DensityOfMagnitudes: "scipy density",
    Skewed: "symmetry",
    WrongInverse: "tail scipy",
    Underflowing: "density",
    OtherUnits: "scipy",
    MedianAsMean: "estimators",
    Credulous: "estimators",
    OwnRandomness: "randomness",
    PowerLawInWords: "contract",
    BoundsOfAnother: "contract",
    OffScale: "scales",
    Mutable: "value estimators",
}


def broken_laws(distribution):
    """The ids of the checks that fail."""
    return {name for name, check in family_checks(distribution) if fails(check)}


@pytest.mark.parametrize("cheat", BREAKS, ids=lambda cheat: cheat.__name__)
def test_a_cheat_breaks_exactly_these_laws(cheat):
    assert broken_laws(cheat(2.0)) == set(BREAKS[cheat].split())


def test_an_honest_family_breaks_none_and_every_law_is_broken_by_someone():
    assert broken_laws(Laplace(2.0)) == set()
    laws = {name for name, _ in family_checks(Laplace(2.0))}
    assert {name for names in BREAKS.values() for name in names.split()} == laws


def test_the_extremal_gradients_are_where_the_bounds_are():
    """By the formulas of the bounds: of exponents at 4/3, and of levels between powers of 2."""
    values = {name: float(grad.flatten()[0]) for name, grad in extremal().items()}
    x = values["4/3"]
    assert (x - 1) * (2 - x) / x**2 == pytest.approx(1 / 8, rel=1e-6)
    assert math.log2(values["constant"]) % 1 != 0
