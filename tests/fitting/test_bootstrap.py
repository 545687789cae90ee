"""The parametric bootstrap: right under the law, telling under another, corrected over groups."""

import math

import numpy as np
import pytest
import torch

from gradstats.families import DGamma, DWeibull, FitError, Laplace, T
from gradstats.fitting.bootstrap import bootstrap_p_value, corrected
from gradstats.summary import summarize


def sample(law, n, seed, dtype=torch.float32):
    values = law.rvs(n, np.random.default_rng(seed))
    return summarize(torch.from_numpy(values).to(dtype))


@pytest.mark.slow
def test_under_the_law_p_values_are_uniform():
    """Although the parameters come from the same data: a plain KS p-value would sit near 1."""
    p_values = [
        bootstrap_p_value(
            Laplace, sample(Laplace(2.0), 300, seed), np.random.default_rng(seed), replicates=39
        )
        for seed in range(120)
    ]
    for level in (0.25, 0.5, 0.75):
        share = np.mean(np.array(p_values) <= level)
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 120)


@pytest.mark.slow
@pytest.mark.parametrize("law", [T(60.0, 1.0), DWeibull(15.0, 1.0)], ids=repr)
def test_replicates_that_cannot_be_fitted_do_not_count(law):
    """A tenth to a third of them: counted as "not farther" the mean p of T was 0.35."""
    p_values = []
    for seed in range(120):
        data, rng = sample(law, 60, seed), np.random.default_rng(seed)
        try:
            found = bootstrap_p_value(type(law), data, rng, replicates=29, method="moments")
        except FitError:
            continue
        p_values.append(found)
    assert len(p_values) > 50
    deviation = math.sqrt(1 / 12 / len(p_values))
    assert abs(np.mean(p_values) - 0.5 - 1 / 60) < 2.5 * deviation


def test_without_a_replicate_that_can_be_fitted_there_is_no_p_value(monkeypatch):
    data, fit = sample(Laplace(1.0), 50, 1), Laplace.fit
    fits = iter([fit(data)])

    def once(summary, *, method):
        for law in fits:
            return law
        raise FitError("cannot fit laplace: asked a second time")

    monkeypatch.setattr(Laplace, "fit", once)
    with pytest.raises(FitError, match="none of 9 replicates can be fitted"):
        bootstrap_p_value(Laplace, data, np.random.default_rng(2), replicates=9)


def test_another_law_is_found_out_and_the_subsample_is_what_decides():
    data = sample(DGamma(0.7, 1.0), 100_000, 1)
    few, many = (
        bootstrap_p_value(Laplace, data, np.random.default_rng(2), replicates=39, size=size)
        for size in (20, 2000)
    )
    assert many == 1 / 40
    assert few > 0.1


def test_the_same_generator_gives_the_same_p_value_in_any_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        data = sample(Laplace(1.0), 500, 3, dtype)
        first, again = (
            bootstrap_p_value(Laplace, data, np.random.default_rng(4), replicates=19)
            for _ in range(2)
        )
        assert first == again
        assert first > 1 / 20


def test_a_subsample_that_cannot_be_fitted_is_a_fit_error():
    with pytest.raises(FitError):
        bootstrap_p_value(DGamma, summarize(torch.ones(50)), np.random.default_rng(0))
    with pytest.raises(FitError):
        bootstrap_p_value(Laplace, summarize(torch.zeros(50)), np.random.default_rng(0))


@pytest.mark.slow
def test_holm_multiplies_the_smallest_by_the_groups_and_stays_ordered():
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03}
    rows = [{"family": "t", "group": group, "bootstrap_p": p} for group, p in p_values.items()]
    rows.append({"family": "t", "group": "failed", "bootstrap_p": math.nan})
    rows.append({"family": "u", "group": "a", "bootstrap_p": 0.04})
    found = [row["bootstrap_p_corrected"] for row in corrected(rows)]
    assert found[:3] == pytest.approx([0.03, 0.06, 0.06])  # 3·0.01; 2·0.03 and its successor
    assert math.isnan(found[3])
    assert found[4] == 0.04
