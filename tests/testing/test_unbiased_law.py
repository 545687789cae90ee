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


@pytest.mark.parametrize("directions", [16, 400])
def test_a_bias_of_four_fifths_of_a_standard_deviation_is_found(directions):
    assert alarms(directions=directions, bias=0.8, chance=0.5) == SEEDS
