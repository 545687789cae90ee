"""The levels of alphabets against torch's own small floats and published numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from gradstats.kernels import coding_eager
from gradstats.kernels.coding_eager import Rounding
from gradstats.payloads import codebooks as alphabets
from gradstats.payloads.codebooks import (
    CO3_FP4,
    CO3_FP8,
    CO3_FP8_143,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    DynamicTree,
    Exponential,
    Gauss,
    Lattice,
    Powers,
    Sign,
    Uniform,
    alphabet_of,
)

EVERY = [Sign(), Uniform(1), Uniform(127), Exponential(4), Powers(), Gauss(1), Gauss(4)]
EVERY += [Gauss(8), Lattice(1, 1), Lattice(4, 30), Lattice(7, 200), Lattice(8, 255)]
EVERY += [CO3_FP4, CO3_FP8, CO3_FP8_143, E2M1, E4M3, E5M2, E2M3, E3M2, DynamicTree()]


@pytest.mark.parametrize("alphabet", EVERY, ids=str)
def test_levels_rise_and_codes_come_back(alphabet):
    levels = alphabet.levels()
    assert levels.dtype == torch.float32
    assert bool((levels.diff() > 0).all())
    assert alphabet_of(alphabet.code) == alphabet
    assert alphabet.size == len(levels)
    assert all(0 <= number < 1 << 16 for number in alphabet.code)


@pytest.mark.parametrize(
    "code", [(0, 0, 0), (99, 0, 0), (1, 1, 0), (2, 0, 0), (2, 5, 1), (5, 9, 0), (6, 8, 0)]
)
def test_codes_of_nothing_are_refused(code):
    with pytest.raises(ValueError, match="alphabet"):
        alphabet_of(code)


@pytest.mark.parametrize(
    ("alphabet", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)]
)
def test_eight_bit_floats_are_those_of_torch(alphabet, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    finite = every[every.isfinite()].unique()  # 0 and -0 are one
    assert torch.equal(alphabet.levels(), finite)


@pytest.mark.parametrize(
    ("alphabet", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)]
)
def test_rounding_to_eight_bits_is_a_cast_of_torch(alphabet, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator) * torch.logspace(-6, 2, 20_000)
    levels = alphabet.levels()
    middles = (levels[1:] + levels[:-1]) / 2  # exact in float32: ties
    values = torch.cat([values, middles, levels])
    values = values[values.abs() <= alphabet.largest]
    packed = coding_eager.quantize(
        values, Rounding(torch.ones(1), len(values), levels, "nearest-even", (0, 0))
    )
    symbols = coding_eager.unpack(packed, len(values), len(levels))
    assert torch.equal(levels[symbols.long()], values.to(dtype).float())


def test_the_levels_of_co3_are_those_of_the_notes():
    assert CO3_FP4.levels().tolist() == [-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3]
    assert [len(each.levels()) for each in (CO3_FP8, CO3_FP8_143)] == [247, 239]
    assert (CO3_FP8.largest, CO3_FP8_143.largest) == (57344, 30)
    positive = CO3_FP8.levels()[CO3_FP8.levels() > 0]
    assert (float(positive[0]), float(positive[3])) == (2.0**-16, 2.0**-14)
    assert float(CO3_FP8_143.levels()[CO3_FP8_143.levels() > 0][0]) == 2.0**-12


def test_a_tie_of_co3_goes_to_the_lower_level():
    values = torch.tensor([0.25, -0.25, 2.5, -2.5, 10.0, 0.2500001])
    levels = CO3_FP4.levels()
    packed = coding_eager.quantize(
        values, Rounding(torch.ones(1), len(values), levels, "nearest", (0, 0))
    )
    symbols = coding_eager.unpack(packed, len(values), len(levels)).long()
    assert levels[symbols].tolist() == [0, -0.5, 2, -3, 3, 0.5]


@pytest.mark.parametrize(
    ("alphabet", "magnitudes"),
    [(E2M1, [0.5, 1, 1.5, 2, 3, 4, 6]), (Exponential(2), [0.25, 0.5, 1])],
)
def test_short_lists(alphabet, magnitudes):
    positive = alphabet.levels()[alphabet.levels() > 0]
    assert positive.tolist() == magnitudes
    assert (E2M3.largest, E3M2.largest) == (7.5, 28)


@pytest.mark.parametrize(
    ("bits", "distortion"), [(1, 0.36338), (2, 0.11748), (3, 0.034548), (4, 0.009501)]
)
def test_gauss_is_the_quantizer_of_max(bits, distortion):
    """Its distortion by numerical integration, and the table of Max (1960)."""
    levels = Gauss(bits).exact_levels()
    edges = [-40, *(levels[1:] + levels[:-1]) / 2, 40]

    def error(x, level):
        return (x - level) ** 2 * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    found = sum(
        quad(error, a, b, args=(level,))[0]
        for a, b, level in zip(edges, edges[1:], levels, strict=False)
    )
    assert found == pytest.approx(distortion, rel=2e-4)
    np.testing.assert_allclose(levels, -levels[::-1])


def test_the_dynamic_tree_has_256_levels_over_seven_decades():
    levels = DynamicTree().levels()
    assert len(levels) == 256
    assert float(levels[-1]) == 1
    assert 1e-7 < float(levels[levels > 0][0]) < 1e-6
    finest = levels[(levels > 0.2) & (levels < 0.9)].diff()
    assert float(finest.max()) == pytest.approx(0.9 / 64, rel=1e-5)


def test_powers_are_those_of_float32():
    levels = Powers().levels()
    assert len(levels) == 2 * 254 + 1
    assert float(levels[-1]) == 2.0**127
    assert float(levels[levels > 0][0]) == torch.finfo(torch.float32).tiny
    assert alphabets.KINDS[4] is Powers
