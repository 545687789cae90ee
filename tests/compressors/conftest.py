"""The grid inputs on which the released codes were run: no random numbers."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

LAWS = {
    "laplace": stats.expon(),
    "gamma 0.5": stats.gamma(0.5),
    "gpd 0.2": stats.genpareto(0.2),
    "halfnormal": stats.halfnorm(),
}


@cache
def grid_gradient(law, n=1_000_000):
    """|g_i| = F⁻¹((i + ½)/n), signs alternate, float64."""
    magnitudes = LAWS[law].ppf((np.arange(n) + 0.5) / n)
    magnitudes[1::2] *= -1
    return torch.from_numpy(magnitudes)


@pytest.fixture(scope="session")
def grid():
    return grid_gradient
