"""A stranger follows docs/adding-a-family.md: its law is whole, short, and can be fitted."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gradstats.families import Laplace
from gradstats.fitting.rows import fit_rows
from gradstats.summary import summarize
from gradstats.testing import check_family, family_checks

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-family.md"


@pytest.fixture(scope="module")
def logistic():
    return page()["Logistic"]


def page():
    """The names that the page's code defines, once the suite it calls has run."""
    law, suite, own_tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(law.splitlines()) < 60
    faces = set(re.findall(r"from (gradstats[\w.]*) import", law))
    assert faces == {"gradstats.families", "gradstats.summary"}
    names = {"__name__": "logistic"}
    exec(law + suite + own_tests, names)
    return names


def test_the_tests_of_the_page_are_one_per_law():
    names = page()
    checks, obeys = names["CHECKS"], names["test_logistic_obeys"]
    assert [each.id for each in checks] == [name for name, _ in family_checks(Laplace(1.0))]
    for each in checks:
        obeys(*each.values)


def test_the_law_of_the_page_obeys_the_laws(logistic):
    for scale in (1e-4, 1.0, 30.0):
        check_family(logistic(scale))


def test_it_is_fitted_like_any_other(logistic):
    draws = stats.logistic(scale=0.02).rvs(50_000, random_state=np.random.default_rng(0))
    (row,) = fit_rows(summarize(draws.astype(np.float32)), families=[logistic], ratios=[0.01])
    assert row["status"] == "ok"
    assert row["scale"] == pytest.approx(stats.logistic.fit(draws, floc=0)[1], rel=1e-3)
    assert row["khat_over_k"] == pytest.approx(1, abs=0.15)
