"""Rotations are Hadamard matrices after random signs, with the same bits in both forms."""

import math

import pytest
import torch
from scipy.linalg import hadamard

from gradstats.kernels import rotating
from gradstats.kernels.forms import use
from gradstats.payloads.codebooks import Gauss
from gradstats.rng import Stream
from gradstats.testing import counting_host_reads

FORMS = ["auto", "eager"]
KEY = (123, 456)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "block"), [(1, 1), (5, 8), (64, 64), (300, 128), (9000, 4096)])
def test_the_rotation_is_a_hadamard_matrix_after_signs(form, n, block):
    values = torch.randn(n, generator=torch.Generator().manual_seed(5))
    with use(form):
        rotated = rotating.rotate(values, block, KEY)
        back = rotating.unrotate(rotated, n, block, KEY)
    words = (Stream(KEY).uniform(-(-len(rotated) // 32)) * 2.0**32).long()
    bits = words[torch.arange(len(rotated)) // 32] >> (torch.arange(len(rotated)) % 32) & 1
    signed = torch.nn.functional.pad(values, (0, len(rotated) - n)) * (1 - 2 * bits)
    matrix = torch.from_numpy(hadamard(block)).double() / math.sqrt(block)
    expected = (signed.double().view(-1, block) @ matrix).view(-1)
    torch.testing.assert_close(rotated.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(back, values, rtol=0, atol=1e-5)


def test_threads_change_no_bit():
    values = torch.randn(2_000_003)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(rotating.rotate(values, 1024, KEY))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_blocks_are_powers_of_two():
    values = torch.ones(4)
    for turn in (
        lambda: rotating.rotate(values, 3, KEY),
        lambda: rotating.unrotate(values, 4, 0, KEY),
    ):
        with pytest.raises(ValueError, match="block must be a power of two"):
            turn()


def test_torch_rotates_without_the_host():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    with use("eager"), counting_host_reads(values) as counted:
        turned = rotating.rotate(values, 64, KEY)
        rotating.unrotate(turned, 1000, 64, KEY)
    assert (counted.reads, counted.uploads) == (0, 0)


@pytest.mark.parametrize("block", [1, 8, 64, 2048, 4096, 8192])
@pytest.mark.parametrize("n", [0, 1, 5, 4095, 4097, 20_000])
def test_both_forms_have_the_same_bits(n, block):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    seen = []
    for form in FORMS:
        with use(form):
            turned = rotating.rotate(values, block, KEY)
            seen.append((turned, rotating.unrotate(turned, n, block, KEY)))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def quantized(values, block, levels, form):
    with use(form):
        made = rotating.quantize(values, block, KEY, levels)
        decoded = rotating.decode(made.packed, len(values), made.scales, block, levels, KEY)
    return made, decoded


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    ("n", "block"),
    [(0, 64), (1, 1), (63, 64), (65, 64), (4097, 2048), (20_000, 4096), (9000, 8192)],
)
def test_rounding_in_one_pass_is_rounding_step_by_step(n, block, bits):
    values, levels = (
        torch.randn(n, generator=torch.Generator().manual_seed(n)),
        Gauss(bits).levels(),
    )
    (one, decoded), (other, expected) = (quantized(values, block, levels, form) for form in FORMS)
    assert torch.equal(one.packed, other.packed)
    assert torch.equal(one.scales, other.scales)
    assert torch.equal(decoded, expected)
    assert one.unit == other.unit == 1.0
    for a, b in zip(one[2:5], other[2:5], strict=True):  # sums in another order
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
    rotated = rotating.rotate(values, block, KEY).double().view(-1, block)
    torch.testing.assert_close(one.values_sq, rotated.square().sum(1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "block"), [(63, 64), (20_000, 4096), (9000, 8192)])
def test_what_is_added_is_what_is_decoded(n, block, dtype, weight):
    values, levels = torch.randn(n, generator=torch.Generator().manual_seed(n)), Gauss(3).levels()
    made, decoded = quantized(values, block, levels, "auto")
    before = torch.randn(n, generator=torch.Generator().manual_seed(9)).to(dtype)
    for form in FORMS:
        out = before.clone()
        with use(form):
            rotating.add_decoded(made.packed, made.scales, block, levels, KEY, out, weight)
        expected = before.clone().add_(decoded, alpha=weight)
        torch.testing.assert_close(out, expected)
        if weight in (0, 1):  # else a product may be rounded before it is added
            assert torch.equal(out, expected)


def test_elements_apart_are_added_to_as_well():
    made, decoded = quantized(torch.randn(4096), 4096, Gauss(2).levels(), "auto")
    out = torch.zeros(4096, 2)[:, 0]
    rotating.add_decoded(made.packed, made.scales, 4096, Gauss(2).levels(), KEY, out, weight=1.0)
    assert torch.equal(out, decoded)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "factors",
    [
        (0.0, 0.0),
        (0.0, 1.0),
        (1e-30, 1.0),
        (1e-45, 0.0),
        (1e-45, 1.0),
        (1e36, 1e-36),
        (1e38, 1e38),
    ],
)
def test_extreme_blocks_are_rounded_as_others(form, factors):
    """Against the same blocks at a scale of 1: a power of two moves nothing but the scales."""
    levels = Gauss(2).levels()
    powers = [2.0 ** round(math.log2(each)) if each else 0.0 for each in factors]
    plain = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).sign()
    values = (plain.double() * torch.tensor(powers, dtype=torch.float64)[:, None]).float().view(-1)
    made, decoded = quantized(values, 64, levels, form)
    other, _ = quantized(plain.view(-1), 64, levels, form)
    assert bool(decoded.isfinite().all())
    for i, power in enumerate(powers):
        if power > 1e-38 * max(powers):  # what a unit for all keeps
            of_block = slice(16 * i, 16 * i + 16)
            assert torch.equal(made.packed[of_block], other.packed[of_block])
        if not power:
            assert made.scales[i] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_spoil_their_block_alone(bad):
    values = torch.randn(128, generator=torch.Generator().manual_seed(1))
    values[70] = bad
    for form in FORMS:
        made, decoded = quantized(values, 64, Gauss(2).levels(), form)
        assert not made.scales[1].isfinite()
        assert not decoded[64:].isfinite().any()
        assert decoded[:64].isfinite().all()


def test_threads_quantize_alike():
    values, levels = torch.randn(2_000_003), Gauss(2).levels()
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made, decoded = quantized(values, 4096, levels, "auto")
            seen.append((*made[:5], decoded))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
