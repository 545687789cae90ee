"""What is decoded is added, written or subtracted in one pass, with the bits of the long way."""

import math

import numpy as np
import pytest
import torch

import gradstats
from gradstats.compressors.steps import PayloadMean
from gradstats.kernels import coding
from gradstats.kernels.coding_cpu_levels import EVEN, MINIFLOAT, TABLE, formula
from gradstats.kernels.forms import use
from gradstats.payloads.base import Dense
from gradstats.payloads.bundle import Bundle
from gradstats.payloads.codebooks import Uniform
from gradstats.payloads.low_rank import LowRank
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng

N = 9001
FORMS = ["auto", "eager"]
WIDE = [torch.float32, torch.float64]
SPECS = ["sign", "sign(64)", "qsgd", "mxfp8", "mxfp4", "nvfp4", "fp8", "affine(4)", "terngrad"]


def tables(levels, bucket=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    symbols = torch.randint(0, levels, (N,), generator=draw)
    scales = torch.rand(-(-N // bucket), generator=draw)
    book = torch.randn(levels, generator=draw).sort().values
    return coding.pack(symbols, levels), scales, bucket, book, book[symbols], symbols


def spread(scales, bucket=64):
    return scales.repeat_interleave(bucket)[:N]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [*WIDE, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 3, 15, 256, 300])
def test_writing_is_adding_to_zeros(form, dtype, levels):
    packed, scales, bucket, book, level, _ = tables(levels)
    out = torch.full((N,), math.nan, dtype=dtype)
    with use(form):
        coding.write_dequantized(packed, scales, bucket, book, out, 0.25)
    expected = torch.zeros(N, dtype=dtype).add_(level * spread(scales), alpha=0.25)
    assert torch.equal(out, expected)
    assert not (out.signbit() & (out == 0)).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("levels", [2, 15, 256])
def test_subtracting_leaves_0_where_what_was_sent_is_not_finite(form, dtype, levels):
    packed, scales, bucket, book, level, _ = tables(levels)
    scales[3], scales[5] = math.nan, math.inf
    residual = torch.linspace(-1, 1, N, dtype=dtype)
    sent = (level * spread(scales)).to(dtype)
    expected = torch.where(sent.isfinite(), residual - sent, 0)
    with use(form):
        coding.subtract_dequantized(packed, scales, bucket, book, residual)
    assert torch.equal(residual, expected)
    assert residual.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_levels_of_small_floats_are_those_of_the_cast_by_torch(dtype):
    patterns = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    levels = patterns[patterns.isfinite()].unique()  # -0 and 0 are one level
    how = formula(levels.numpy())
    assert how.kind == MINIFLOAT
    symbols = torch.arange(len(levels))
    found = coding.dequantize(
        coding.pack(symbols, len(levels)), len(levels), torch.ones(1), len(levels), levels
    )
    assert torch.equal(found, levels)


def test_formulas_are_taken_where_they_have_the_bits_of_the_table():
    assert formula(np.array([-1, 1], np.float32)).kind == EVEN
    assert formula((np.arange(255, dtype=np.float32) - 127) / np.float32(127)).kind == EVEN
    for odd in ([0, 1], [-1, 0.5], [-2, -1], [-1, 0, 1.5], [-3, 0, 1, 3]):
        assert formula(np.array(odd, np.float32)).kind == TABLE
    even = (np.arange(15, dtype=np.float32) - 7) / np.float32(7)
    even[3] = np.nextafter(even[3], np.float32(2))
    assert formula(even).kind == TABLE


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", WIDE)
def test_a_mean_of_messages_is_that_of_what_they_decode_to(spec, dtype):
    method = gradstats.compressor(spec)
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(N, generator=draw) for _ in range(3)]
    payloads = [method.encode(grad, None, Rng(0, 0, "w", i))[0] for i, grad in enumerate(grads)]
    mean = PayloadMean(tuple(payloads), torch.Size([N]), dtype, torch.device("cpu"))
    out = torch.full((N,), math.nan, dtype=dtype)
    mean.write_to(out)
    expected = torch.zeros(N, dtype=dtype)
    for payload in payloads:
        expected.add_(payload.decode(), alpha=1 / 3)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(mean.decoded(), out)
    assert mean.is_finite


@pytest.mark.parametrize("spec", SPECS)
def test_a_message_is_known_finite_where_all_it_decodes_to_is(spec):
    method = gradstats.compressor(spec)
    grad = torch.linspace(-1, 1, 4096)
    assert method.encode(grad, None, Rng())[0].is_known_finite
    for broken in (math.nan, math.inf, -math.inf):
        spoilt = grad.clone()
        spoilt[1000] = broken
        payload = method.encode(spoilt, None, Rng())[0]
        assert not payload.is_known_finite
        assert not payload.decode().isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_another_length_are_refused(form):
    packed, scales, bucket, book, *_ = tables(15)
    with use(form):
        for n, given in ((N, scales[:-1]), (N + 300, scales), (N - 300, scales)):
            out = torch.zeros(n)
            with pytest.raises(ValueError, match=r"must (be|have)"):
                coding.write_dequantized(packed, given, bucket, book, out, 1.0)
            with pytest.raises(ValueError, match=r"must (be|have)"):
                coding.subtract_dequantized(packed, given, bucket, book, out)
            assert not out.any()


@pytest.mark.parametrize(
    ("unit", "scale", "offset"),
    [
        (1.9 * 2.0**-120, 3e38, None),
        (2.0**-120, 3e38, 3e38),
        (-1.0, math.inf, None),
        (-4.0, 3e38, None),
        (-1.0, 3e38, -3e38),
    ],
)
def test_messages_of_others_that_overflow_are_not_known_finite(unit, scale, offset):
    top = Packed(coding.pack(torch.full((8,), 2), 3))
    offsets = None if offset is None else torch.tensor([offset])
    message = Coded(top, 8, Uniform(1), torch.tensor([scale]), 8, unit, offsets=offsets)
    assert not message.decode().isfinite().all()
    assert not message.is_known_finite


def test_a_product_of_float16_factors_is_not_known_finite():
    factors = (torch.full((n, 1), 300.0, dtype=torch.float16) for n in (4, 3))
    message = LowRank(*factors)
    assert not message.decode().isfinite().all()
    assert not message.is_known_finite


def test_what_may_overflow_in_a_sum_is_not_known_finite():
    largest = torch.finfo(torch.float32).max
    for spec in ("mxfp8", "fp8", "sign", "affine"):
        payload = gradstats.compressor(spec).encode(torch.full((64,), largest), None, Rng())[0]
        assert not payload.is_known_finite


def test_a_bundle_is_written_part_by_part():
    method = gradstats.compressor("mxfp8")
    coded, _ = method.encode(torch.linspace(-1, 1, 96), None)
    bundle, out = Bundle((coded, Dense(torch.ones(4)))), torch.full((100,), math.nan)
    bundle.write_to(out, 0.5)
    assert torch.equal(out, torch.cat([coded.decode(), torch.ones(4)]) / 2)
    assert not bundle.is_known_finite  # nobody looked at the second part
    assert Bundle((coded, coded)).is_known_finite
