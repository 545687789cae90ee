"""Scales, symbols and bytes in one pass of numba, against the definition in plain torch."""

import time

import numpy as np
import pytest
import torch

from gradstats.kernels import coding
from gradstats.kernels.coding_scaled import KINDS, ScaleRule, quantize_scaled, quantize_signs
from gradstats.kernels.forms import use
from gradstats.payloads.codebooks import (
    CO3_FP4,
    CO3_FP8,
    E2M1,
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
)

FORMS = ["auto", "eager"]
KEY = (123, 456)
SIZES = [0, 1, 7, 31, 32, 33, 4095, 4097, (1 << 19) + 513]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ALPHABETS = [
    Sign(),
    Uniform(1),
    Uniform(7),
    Uniform(8),
    Uniform(127),
    Uniform(128),
    Exponential(3),
    Powers(),
    Gauss(2),
    Gauss(4),
    Gauss(8),
    E2M1,
    E3M2,
    E4M3,
    E5M2,
    CO3_FP4,
    CO3_FP8,
    DynamicTree(),
    Lattice(4, 30),
]
RULES = [
    ScaleRule("max"),
    ScaleRule("max", divisor=448.0),
    ScaleRule("l2"),
    ScaleRule("power", power=2),
    ScaleRule("power", power=8),
    ScaleRule("e4m3", divisor=6 * 0.01, unit=0.01),
    ScaleRule("range"),
]


def gradient(n, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + n)
    values = torch.randn(n, generator=generator) ** 3
    values[torch.rand(n, generator=generator) < 0.1] = 0
    return values.to(dtype)


def same_bits(a, b):
    """Whether they are equal, NaN included."""
    if a is None or b is None:
        return a is b
    integers = {1: torch.uint8, 4: torch.int32}[a.dtype.itemsize]
    nan = torch.zeros_like(a, dtype=torch.bool) if a.dtype == torch.uint8 else a.float().isnan()
    equal = a.view(integers) == b.view(integers)
    return a.dtype == b.dtype and a.shape == b.shape and bool((equal | nan & b.isnan()).all())


def check_scaled(values, bucket, alphabet, rule, rounding):
    levels = alphabet.levels()
    scaled = {}
    for form in FORMS:
        with use(form):
            scaled[form] = quantize_scaled(
                values, bucket, levels, rule, rounding=rounding, key=KEY
            )
    ours, definition = scaled["auto"], scaled["eager"]
    if rule.kind == "l2":  # sums are added in another order
        torch.testing.assert_close(
            ours.scales, definition.scales, rtol=1e-6, atol=0, equal_nan=True
        )
        with use("eager"):
            packed = coding.quantize(
                values, ours.scales, bucket, levels, rounding=rounding, key=KEY
            )
        assert torch.equal(ours.packed, packed)
        return
    assert same_bits(ours.scales, definition.scales)
    assert same_bits(ours.offsets, definition.offsets)
    assert torch.equal(ours.packed, definition.packed)
    assert same_bits(ours.largest.float(), definition.largest.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_pass_gives_the_bits_of_the_definition(rule, dtype):
    for n in SIZES[:-1]:
        for bucket in (1, 16, 32, 100, max(n, 1)):
            for rounding in coding.ROUNDINGS:
                check_scaled(gradient(n, dtype), bucket, E2M1, rule, rounding)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_pass_crosses_chunks(rule):
    for bucket, alphabet in ((16, E2M1), (32, E4M3), (512, Uniform(7)), (512, Uniform(1))):
        check_scaled(gradient(SIZES[-1]), bucket, alphabet, rule, "nearest-even")
    check_scaled(gradient(SIZES[-1]), 512, Uniform(7), rule, "stochastic")


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("bucket", [16, 32, 100, 512])
def test_extreme_buckets_have_the_bits_of_the_definition(rule, bucket):
    """Each bucket has one odd unit; some hold a NaN, an infinity, or zeros of either sign."""
    exponents = torch.tensor([-149, -140, -126, -110, -101, -100, -90, 0, 90, 99, 101, 120, 126])
    units = torch.exp2(exponents.double()).repeat(3)
    values = (
        gradient(len(units) * bucket).clamp(-1.9, 1.9).double().view(-1, bucket) * units[:, None]
    ).float()
    for row, odd in enumerate((torch.nan, torch.inf, -torch.inf, -torch.nan), start=13):
        values[row, row % bucket] = odd
    values[20], values[21] = 0.0, -0.0
    values[22, 0] = values[22, 1] = torch.inf
    for alphabet in (E2M1, E4M3, Uniform(7), Uniform(127), Sign()):
        for rounding in coding.ROUNDINGS:
            check_scaled(values.view(-1), bucket, alphabet, rule, rounding)


def near(levels):
    """All levels, the middles between them, and the floats next to these."""
    edges = torch.cat([levels, ((levels[1:].double() + levels[:-1].double()) / 2).float()])
    sides = [torch.nextafter(edges, torch.full_like(edges, end)) for end in (-1e30, 1e30)]
    odd = torch.tensor([0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-45, -1e-45])
    return torch.cat([odd, edges, *sides, levels * 1.1, levels * 0.9, levels * 1e-30])


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=str)
def test_symbols_next_to_every_boundary(alphabet):
    levels = alphabet.levels()
    values = near(levels).repeat(40)
    for rounding in coding.ROUNDINGS:
        symbols = []
        for form in FORMS:
            with use(form):
                symbols.append(
                    coding.to_symbols(
                        values, torch.ones(1), len(values), levels, rounding=rounding, key=KEY
                    )
                )
        assert torch.equal(*symbols)


@pytest.mark.parametrize("alphabet", [Uniform(1), Uniform(7), Uniform(100), Uniform(127)], ids=str)
def test_many_random_symbols_at_even_distances(alphabet):
    """Where float32 is in doubt, the definition decides."""
    levels, n = alphabet.levels(), 1_000_000
    values = torch.rand(n, generator=torch.Generator().manual_seed(7)) * 2.2 - 1.1
    for rounding in ("nearest", "stochastic"):
        symbols = []
        for form in FORMS:
            with use(form):
                symbols.append(
                    coding.to_symbols(values, torch.ones(1), n, levels, rounding=rounding, key=KEY)
                )
        assert torch.equal(*symbols)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_pattern_of_16_bits_is_widened_and_rounded(dtype):
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    for alphabet in (E4M3, Gauss(8)):
        levels = alphabet.levels()
        narrow, wide = (
            coding.to_symbols(x, torch.ones(1), len(x), levels, rounding="nearest-even")
            for x in (patterns, patterns.float())
        )
        assert torch.equal(narrow, wide)
    for level in (0.0, 1.0, -3.0e-8, 1e-3, 1e30):
        out = patterns.clone()
        packed = coding.pack(torch.ones(len(out), dtype=torch.uint8), 2)
        coding.add_dequantized(
            packed, torch.ones(1), len(out), torch.tensor([0.0, level]), out, 1.0
        )
        expected = (patterns.float() + level).to(dtype)
        equal = out.view(torch.int16) == expected.view(torch.int16)
        assert (equal | (out.isnan() & expected.isnan())).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bucket", [1, 5, 8, 32, 4096, 5000, 1 << 19, (1 << 19) + 8, 1 << 30])
def test_signs_and_means(dtype, bucket):
    for n in SIZES if dtype == torch.float32 else SIZES[:-1]:
        values = gradient(n, dtype)
        if n > 100:
            values[[3, 70]] = torch.tensor([torch.nan, -torch.inf], dtype=dtype)
        size = max(1, min(bucket, n))
        if size < 5 and n > 10_000:
            continue
        signs = {}
        for form in FORMS:
            with use(form):
                signs[form] = quantize_signs(values, size)
        assert torch.equal(signs["auto"][0], signs["eager"][0])
        torch.testing.assert_close(
            signs["auto"][1], signs["eager"][1], rtol=1e-6, atol=0, equal_nan=True
        )
        bits = np.packbits(~(values.double().numpy() <= 0), bitorder="little")
        assert np.array_equal(signs["auto"][0].numpy(), bits)


def test_threads_change_no_bit_of_one_pass():
    values, before = gradient(2_000_003), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                [
                    each
                    for rule in RULES
                    for each in quantize_scaled(
                        values, 32, E2M1.levels(), rule, rounding="stochastic", key=KEY
                    )[:3]
                ]
                + [*quantize_signs(values, len(values)), *quantize_signs(values, 512)]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [2, 3, 5, 7, 9, 11, 13, 16, 19, 31, 100, 255, 256, 300, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_what_is_packed_in_every_way(form, levels, dtype):
    n, bucket = 9001, 64
    symbols = torch.from_numpy(np.random.default_rng(levels).integers(0, levels, n))
    book = torch.linspace(-2, 2, levels)
    scales = torch.rand(-(-n // bucket), generator=torch.Generator().manual_seed(3))
    offsets = torch.rand(-(-n // bucket), generator=torch.Generator().manual_seed(4))
    rows, out = torch.arange(n) // bucket, torch.full((n,), 0.5, dtype=dtype)
    with use(form):
        packed = coding.pack(symbols, levels)
        coding.add_dequantized(packed, scales, bucket, book, out, 0.25, offsets)
        decoded = coding.dequantize(packed, n, scales, bucket, book, offsets)
    by_hand = book[symbols] * scales[rows] + offsets[rows]
    assert torch.equal(decoded, by_hand)
    wide = dtype if dtype == torch.float64 else torch.float32
    assert torch.equal(out, (0.5 + by_hand.to(wide) * 0.25).to(dtype))


def test_the_largest_magnitude_comes_with_the_bytes():
    values = gradient(10_000)
    values[77] = -(2.0**99)
    for rule in RULES:
        if rule.kind != "l2":
            scaled = quantize_scaled(values, 32, E2M1.levels(), rule, rounding="nearest")
            assert float(scaled.largest) == 2.0**99
    assert not quantize_scaled(values[:0], 32, E2M1.levels(), RULES[0], rounding="nearest").largest


def test_rules_are_checked():
    with pytest.raises(ValueError, match="kind must be one of max, l2, power, e4m3, range"):
        ScaleRule("l1")
    assert {rule.kind for rule in RULES} == set(KINDS)
    values = torch.ones(4)
    for form in FORMS:
        with use(form), pytest.raises(ValueError, match="rounding must be one of"):
            quantize_scaled(values, 4, torch.tensor([-1.0, 1.0]), RULES[0], rounding="up")
        with use(form), pytest.raises(ValueError, match="key must be given"):
            quantize_scaled(values, 4, E2M1.levels(), RULES[0], rounding="stochastic")


def test_one_pass_costs_a_few_reads():
    """Processor time on one thread, over that of torch's sum in the same round."""
    values, levels = gradient(4_000_000), E4M3.levels()
    shared, own = torch.zeros(len(values)), ScaleRule("power", power=8)

    def encode():
        return quantize_scaled(values, 32, levels, own, rounding="nearest-even")

    def add():
        coding.add_dequantized(scaled.packed, scaled.scales.float(), 32, levels, shared, 0.5)

    def ratio(work):
        moments = [time.process_time()]
        for each in (values.sum, work):
            each()
            moments.append(time.process_time())
        return (moments[2] - moments[1]) / (moments[1] - moments[0])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        scaled = encode()
        for work, most in ((encode, 15), (add, 20), (lambda: quantize_signs(values, 4096), 8)):
            work()
            assert np.quantile([ratio(work) for _ in range(9)], 0.25) < most
    finally:
        torch.set_num_threads(before)
