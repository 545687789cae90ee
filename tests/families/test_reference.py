"""Distributions of scipy.stats as references: what scipy fits, and what the rows say of it."""

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from gradstats.families import FitError, Laplace, family
from gradstats.families.reference import SAMPLE
from gradstats.families.sampling import subsample
from gradstats.fitting.goodness import log_likelihood
from gradstats.fitting.rows import fit_rows
from gradstats.fitting.settings import FitSettings
from gradstats.summary import summarize

RATIOS = np.array([1e-6, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.999])


def drawn(law, n=50_000, seed=0):
    return law.rvs(n, random_state=np.random.default_rng(seed))


def test_a_symmetric_distribution_has_the_values_of_scipy():
    oracle = stats.hypsecant(scale=0.3)
    law = family("scipy:hypsecant")((), 0.3)
    x = np.array([-2.0, -0.1, 0.0, 0.4, 9.0])
    np.testing.assert_allclose(law.logpdf(x), oracle.logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(law.kept(np.abs(x)), 2 * oracle.sf(np.abs(x)), rtol=1e-12)
    np.testing.assert_allclose(law.threshold(RATIOS), oracle.isf(RATIOS / 2), rtol=1e-12)
    assert float(law.threshold(0.0)) == math.inf


def test_a_one_sided_distribution_is_that_of_the_magnitudes():
    oracle = stats.gamma(0.6, scale=2.0)
    law = family("scipy:gamma")((0.6,), 2.0)
    x = np.array([0.1, 1.0, 30.0])
    np.testing.assert_allclose(law.pdf(x), oracle.pdf(x) / 2, rtol=1e-12)
    np.testing.assert_allclose(law.pdf(-x), oracle.pdf(x) / 2, rtol=1e-12)
    np.testing.assert_allclose(law.kept(x), oracle.sf(x), rtol=1e-12)
    np.testing.assert_allclose(law.threshold(RATIOS), oracle.isf(RATIOS), rtol=1e-12)
    assert law.parameters == {"shape": 0.6, "scale": 2.0}


@pytest.mark.parametrize("name", ["laplace_asymmetric", "gumbel_r", "skewnorm"])
def test_the_threshold_of_an_asymmetric_distribution_keeps_the_ratio_on_both_sides(name):
    shapes = () if name == "gumbel_r" else (1.7,)
    law, oracle = family(f"scipy:{name}")(shapes, 0.5), getattr(stats, name)(*shapes, scale=0.5)
    magnitude = law.threshold(RATIOS)
    np.testing.assert_allclose(oracle.sf(magnitude) + oracle.cdf(-magnitude), RATIOS, rtol=1e-9)
    density = (oracle.pdf(magnitude) + oracle.pdf(-magnitude)) / 2
    np.testing.assert_allclose(law.pdf(magnitude), density, rtol=1e-9)
    assert float(law.threshold(1.0)) == pytest.approx(0, abs=1e-12)


def test_it_is_fitted_by_scipy_to_a_seeded_subsample_with_loc_0():
    summary = summarize(drawn(stats.laplace_asymmetric(1.3, scale=0.02)))
    law = family("scipy:laplace_asymmetric").fit(summary)
    assert law == family("scipy:laplace_asymmetric").fit(summary)
    assert law.shapes[0] == pytest.approx(1.3, rel=0.03)
    assert law.scale == pytest.approx(0.02, rel=0.03)
    sample = subsample(summary, SAMPLE, np.random.default_rng(0), signed=True)
    unit = np.abs(sample).mean()
    shape, loc, scale = stats.laplace_asymmetric.fit(sample / unit, floc=0)
    assert loc == 0
    assert law.shapes[0] == pytest.approx(shape, rel=1e-4)
    assert law.scale == pytest.approx(scale * unit, rel=1e-4)


def test_a_subsample_has_the_signs_and_magnitudes_of_the_elements():
    values = np.array([0.5] * 300 + [-2.0] * 700 + [0.0] * 50)
    signed = subsample(summarize(values), 1_000, np.random.default_rng(0), signed=True)
    assert (signed > 0).sum() == 300
    assert (signed < 0).sum() == 700
    np.testing.assert_allclose(np.abs(signed[signed < 0]), 2.0, rtol=1 / 128)


def test_rows_are_marked_and_have_all_shapes_in_their_notes():
    summary = summarize(drawn(stats.gamma(0.6), 20_000))
    families = [family("scipy:gamma"), family("scipy:burr12"), Laplace]
    gamma, burr, laplace = fit_rows(summary, families=families, ratios=[0.01])
    assert (gamma["reference"], burr["reference"], laplace["reference"]) == (True, True, False)
    assert gamma["family"] == "scipy:gamma"
    assert gamma["shape"] == pytest.approx(0.6, rel=0.05)
    assert gamma["khat_over_k"] == pytest.approx(1, abs=0.15)
    assert math.isnan(burr["shape"])
    size = "reference: fitted by scipy to 10,000 of 20,000 magnitudes, loc 0, seed 0"
    assert gamma["notes"].startswith(f"{size}, a=0.")
    assert f"{size}, c=" in burr["notes"]
    assert ", d=" in burr["notes"]
    # two shapes and a scale are three parameters
    assert burr["aic"] == pytest.approx(6 - 2 * 20_000 * burr["log_likelihood"], rel=1e-12)
    law = family("scipy:gamma").fit(summary)
    assert gamma["log_likelihood"] == log_likelihood(law, summary)
    assert gamma["log_likelihood"] > laplace["log_likelihood"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hypsecant", np.zeros(50)),
        ("gamma", np.ones(50)),
    ],
)
def test_a_fit_that_fails_is_a_row_with_the_reason(name, values):
    (row,) = fit_rows(summarize(values), families=[family(f"scipy:{name}")], ratios=[0.1])
    assert row["status"].startswith(f"cannot fit scipy:{name}: ")
    assert math.isnan(row["khat_over_k"])
    assert row["reference"]


def test_an_error_of_scipy_itself_is_a_status(monkeypatch):
    chosen = family("scipy:powerlognorm")
    monkeypatch.setattr(chosen.law, "fit", lambda *_, **__: 1 / 0, raising=False)
    with pytest.raises(FitError, match="cannot fit scipy:powerlognorm: ZeroDivisionError"):
        chosen.fit(np.arange(1.0, 50.0))


@pytest.mark.parametrize("ended", [(2.0, 0.5, 0, math.nan), (2.0, 0.5, 0, -1.0)])
def test_a_search_that_ends_nowhere_is_a_status(monkeypatch, ended):
    chosen = family("scipy:powerlognorm")
    monkeypatch.setattr(chosen.law, "fit", lambda *_, **__: ended, raising=False)
    with pytest.raises(FitError, match="cannot fit scipy:powerlognorm: scipy's search ended at"):
        chosen.fit(np.arange(1.0, 50.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hypsecan", r"got 'scipy:hypsecan'; did you mean scipy:hypsecant\?$"),
        ("Genhyperbolic", r"did you mean scipy:genhyperbolic\?$"),
        (
            "poisson",
            r"must be scipy: and a continuous distribution of scipy.stats, got 'scipy:poi",
        ),
        ("", r"got 'scipy:'$"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        family(f"scipy:{name}")


def test_it_is_found_by_import_in_other_processes_and_has_no_moments():
    chosen = family("scipy:genhyperbolic")
    assert pickle.loads(pickle.dumps(chosen)) is chosen
    law = chosen((0.5, 1.5, -0.5), 2.0)
    assert pickle.loads(pickle.dumps(law)) == law
    with pytest.raises(ValueError, match="method of scipy:genhyperbolic must be one of mle"):
        FitSettings(families="scipy:genhyperbolic", method="moments")
    with pytest.raises(ValueError, match="scale of scipy:genhyperbolic must be positive"):
        chosen((0.5, 1.5, -0.5), -1.0)
