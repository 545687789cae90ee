"""Gradients of few values: float16 subnormals, and what was once bfloat16 in wider dtypes."""

import numpy as np
import pytest
import torch

from gradstats import sidco_threshold, summarize
from gradstats.families import DGamma, DGenPareto, FitError, GenNorm, Laplace
from gradstats.fitting.bootstrap import bootstrap_p_value
from gradstats.fitting.goodness import tail_error
from gradstats.kernels import compact
from gradstats.ratios import kept_count

KINDS = {
    "subnormals of float16": lambda x: (2e-6 * x).half(),
    "float16 and its subnormals": lambda x: (1e-4 * x).half(),
    "bfloat16": lambda x: (1e-3 * x).bfloat16(),
    "bfloat16 in float32": lambda x: (1e-3 * x).bfloat16().float(),
    "bfloat16 in float64": lambda x: (1e-3 * x).bfloat16().double(),
    "float8 in float32": lambda x: (1e2 * x).to(torch.float8_e4m3fn).float(),
}


def gradient(kind, n=60_000, seed=0):
    draws = np.random.default_rng(seed).laplace(size=n)
    return KINDS[kind](torch.from_numpy(draws))


@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("kind", KINDS)
def test_khat_over_k_is_a_count(kind, ratio):
    grad = gradient(kind)
    summary = summarize(grad)
    for family in (Laplace, DGamma, GenNorm):
        law = family.fit(summary)
        threshold, khat_over_k = tail_error(law, summary, ratio)
        selected = len(compact(grad, threshold)[0])
        assert khat_over_k == selected / kept_count(len(grad), ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_of_later_stages_are_those_of_the_elements(kind):
    """Stage by stage with numpy on the elements, as the paper has it."""
    grad = gradient(kind)
    ours = sidco_threshold(summarize(grad), 0.01, variant="e", stages=2)
    magnitudes = grad.double().abs().numpy()
    magnitudes = magnitudes[magnitudes > 0]
    first = magnitudes.mean() * np.log(1 / 0.25)
    over = magnitudes[magnitudes > first] - first
    second = first + over.mean() * np.log(0.25 / (0.01 * len(grad) / len(magnitudes)))
    assert ours.value == pytest.approx(second, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_bootstrap_rounds_its_replicates_as_the_data_were(kind):
    """All of them were rejected."""
    p_values = [
        bootstrap_p_value(
            Laplace,
            summarize(gradient(kind, 5_000, seed)),
            np.random.default_rng(seed),
            replicates=19,
        )
        for seed in range(24)
    ]
    assert 0.3 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) <= 0.05) < 0.25


def test_shapes_are_fitted_to_as_many_values_as_there_are():
    """44 subnormals that lie in 7 bins of eight are 44 values."""
    grad = torch.arange(1, 57, dtype=torch.int16).view(torch.float16)[:44]
    summary = summarize(grad)
    assert summary.distinct == 44
    for family in (DGamma, DGenPareto, GenNorm):
        assert family.fit(summary).parameters["scale"] > 0


def test_the_values_of_a_histogram_of_float32_are_what_they_were():
    """k-hat/k of a matrix under autocast: the same as of the bfloat16 that it was made of."""
    once = gradient("bfloat16")
    for ratio in (0.1, 0.01, 0.001):
        narrow, wide = (
            tail_error(Laplace.fit(g), summarize(g), ratio) for g in (once, once.float())
        )
        assert wide == pytest.approx(narrow, rel=1e-12)


def test_a_law_of_a_few_grains_is_not_tested():
    """2.5 steps of float16's subnormals: a fifth of the elements are 0 by rounding."""
    grad = torch.from_numpy(1.5e-7 * np.random.default_rng(0).laplace(size=2_000)).half()
    with pytest.raises(FitError, match="of it is rounded to 0, magnitudes being multiples of"):
        bootstrap_p_value(Laplace, summarize(grad), np.random.default_rng(0))
