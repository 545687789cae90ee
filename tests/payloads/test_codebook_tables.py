"""Levels that are constants of the payload format, and the solver that places any others."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import fsolve

from gradstats.compressors import max_quantizer
from gradstats.compressors.max_quantizer import levels
from gradstats.compressors.methods.lloyd_max import GRID
from gradstats.families import DWeibull, GenNorm
from gradstats.payloads.alphabet import codebooks
from gradstats.payloads.codebooks import Gauss, Lattice
from tests.processes import soaked

SCRIPT = Path(__file__).parents[2] / "data" / "codebooks.py"
PDFS = {"gennorm": stats.gennorm, "dweibull": stats.dweibull}


def by_quadrature(law, shape, bits, m):
    """Levels by another method altogether: MINPACK on cells integrated numerically.

    It starts from even quantiles of the law, and knows neither the incomplete gamma function nor
    the derivatives of a cell's mean.
    """
    law, n = PDFS[law](shape), 1 << (bits - 1)

    def integral(power, low, high):
        # x = y³ takes the law's singularity at 0 away
        def at(y):
            return 3 * y**2 * y ** (3 * power) * law.pdf(y**3)

        high = high if np.isfinite(high) else law.isf(1e-18)
        return quad(at, np.cbrt(low), np.cbrt(high), epsabs=0, epsrel=1e-11, limit=200)[0]

    def off(logs):
        found = np.exp(logs)
        edges = [0, *(found[1:] + found[:-1]) / 2, np.inf]
        means = [integral(m + 1, *cell) / integral(m, *cell) for cell in itertools.pairwise(edges)]
        return np.log(means) - logs

    start = np.log(law.ppf(0.5 + (np.arange(n) + 0.5) / n / 2))
    band = (1, 1) if n > 2 else None
    root, _, solved, why = fsolve(off, start, band=band, xtol=1e-12, full_output=True)
    assert solved == 1 or np.abs(off(root)).max() < 1e-11, why
    return np.exp(root)


INDEPENDENT = [
    pytest.param("gennorm", 2.0, 8, 0, marks=pytest.mark.soak),
    ("gennorm", 2.0, 5, 0),
    pytest.param("gennorm", 1.0, 6, 0, marks=pytest.mark.soak),
    ("gennorm", 0.5, 4, 0),
    ("gennorm", 1.5, 4, 2),
    ("dweibull", 0.75, 4, 1),
    ("dweibull", 2.0, 4, 0.5),
]


@pytest.mark.parametrize(("law", "shape", "bits", "m"), INDEPENDENT)
@pytest.mark.slow
def test_levels_are_those_of_an_independent_solution(law, shape, bits, m):
    found = levels(law, shape, bits, float(m))
    np.testing.assert_allclose(found, by_quadrature(law, shape, bits, m), rtol=1e-7)


@pytest.mark.parametrize("law", [GenNorm, DWeibull])
@soaked("stride", 61, 4)
def test_levels_are_found_for_every_shape_that_a_fit_gives(law, stride):
    name = {GenNorm: "gennorm", DWeibull: "dweibull"}[law]
    low, high = (round(shape * GRID) for shape in law.bounds["shape"])
    for shape, bits, m in itertools.product(
        [*range(low, high, stride), high], range(1, 9), (0, 0.5, 2, 16)
    ):
        found = levels.__wrapped__(name, shape / GRID, bits, float(m))
        assert len(found) == 1 << (bits - 1)
        assert np.isfinite(found).all()
        assert found[0] > 0
        assert (np.diff(found) > 0).all()


def test_a_solution_that_is_not_found_is_an_error(monkeypatch):
    monkeypatch.setattr(max_quantizer, "ITERATIONS", 1)
    with pytest.raises(ArithmeticError, match=r"cannot place 2\^8 levels of gennorm of shape 0.5"):
        levels.__wrapped__("gennorm", 0.5, 8)


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("not in a source tree")
    spec = importlib.util.spec_from_file_location("codebooks_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_table_of_gauss_is_what_its_script_finds(script, bits):
    # 1e-12: other libraries round otherwise, and Newton's last step is below it
    np.testing.assert_allclose(
        Gauss(bits).exact_levels()[1 << (bits - 1) :], script.gauss(bits), rtol=1e-12
    )


@pytest.mark.parametrize("bits", range(1, 9))
@soaked("stride", 64, 1)
def test_the_table_of_lattices_is_what_its_script_finds(script, bits, stride):
    """Of equal losses another machine may find another: the losses are compared."""
    for grid in range((1 << bits) - 1, 256, stride):
        loss = script.rounding_loss(grid)
        stored, found = Lattice(bits, grid).integers().tolist(), script.lattice(bits, grid)
        assert (stored[0], stored[-1], len(set(stored))) == (0, grid, 1 << bits)
        lost, least = (sum(loss[pair] for pair in itertools.pairwise(z)) for z in (stored, found))
        assert lost == pytest.approx(least, rel=1e-12, abs=1e-15)


def test_the_tables_hold_nothing_else():
    assert {name: len(table) for name, table in codebooks().items()} == {
        "gauss": 255,
        "lattice": sum((257 - (1 << bits)) << bits for bits in range(1, 9)),
    }
