"""The law of E C(x) = x: no false alarm where errors lie in few directions, and none missed."""

import numpy as np
import pytest
import torch

from gradstats.testing.contract_laws import DRAWS, _Drawn, _unbiased

SEEDS = 60


def drawn(directions, seed, bias=0.0, chance=3 / 16):
    """100 draws that keep each of some orthonormal directions with one probability, over it."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((800, directions)))[0].T
    kept = (rng.random((DRAWS, directions)) < chance) / chance * (1 + bias)
    x = torch.from_numpy(basis.sum(0))
    return _Drawn(x, [], torch.from_numpy(kept @ basis))


def alarms(**how):
    return sum(not holds for seed in range(SEEDS) for _, holds in facts(seed, **how))


def facts(seed, **how):
    return [(name, evidence.holds) for name, evidence in _unbiased(drawn(seed=seed, **how))][-1:]


@pytest.mark.parametrize("directions", [1, 2, 16, 400])
def test_unbiased_draws_raise_no_alarm(directions):
    assert alarms(directions=directions) == 0


def test_a_bias_does_not_raise_its_own_limit():
    rng = np.random.default_rng(0)
    x, bias, noise = rng.standard_normal(800), rng.standard_normal(800), np.ones((800, 3))
    noise[:, 0], noise[:, 1] = x, np.sign(x)
    plane = np.linalg.qr(noise)[0]
    bias -= plane @ (plane.T @ bias)
    bias *= 0.5 * np.linalg.norm(x) / np.linalg.norm(bias)
    rough = 0.1 * np.linalg.norm(x) / np.sqrt(800) * rng.standard_normal((DRAWS, 800))
    biased = _Drawn(torch.from_numpy(x), [], torch.from_numpy(x + bias + rough))
    assert not all(evidence.holds for _, evidence in _unbiased(biased))


@pytest.mark.parametrize("directions", [16, 400])
def test_a_bias_of_four_fifths_of_a_standard_deviation_is_found(directions):
    assert alarms(directions=directions, bias=0.8, chance=0.5) == SEEDS
