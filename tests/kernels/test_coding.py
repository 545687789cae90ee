"""Packing, rounding and rotating: numba and torch against big integers, numpy, torch and scipy."""

import math

import numpy as np
import pytest
import torch

from gradstats.kernels import coding, coding_eager
from gradstats.kernels.forms import use
from gradstats.kernels.packing import packing
from gradstats.rng import Stream
from gradstats.testing import counting_host_reads

FORMS = ["auto", "eager"]
LEVELS = [2, 3, 4, 5, 7, 11, 15, 16, 17, 247, 256, 257, 1000, 65536]
SIZES = [0, 1, 7, 8, 9, 39, 41, 4095, 4097, 20_011]
KEY = (123, 456)


def symbols(n, levels, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, levels, n))


def big_integer_bytes(found, levels):
    """The definition, with Python's integers."""
    rule, found = packing(levels), found.tolist()
    if not rule.digits:
        number = sum(symbol << (i * rule.bits) for i, symbol in enumerate(found))
        return number.to_bytes(-(-len(found) * rule.bits // 8), "little")
    out = b""
    for start in range(0, len(found), rule.digits):
        digits = found[start : start + rule.digits]
        number = sum(digit * levels**i for i, digit in enumerate(digits))
        whole = len(digits) == rule.digits
        size = 8 if whole else -(-(levels ** len(digits) - 1).bit_length() // 8)
        out += number.to_bytes(size, "little")
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", LEVELS)
def test_packed_bytes_are_those_of_the_definition(form, levels):
    with use(form):
        for n in SIZES[:-1]:
            found = symbols(n, levels)
            packed = coding.pack(found, levels)
            assert packed.numpy().tobytes() == big_integer_bytes(found, levels)
            assert coding.packed_nbytes(n, levels) == len(packed)
            assert torch.equal(coding.unpack(packed, n, levels).long(), found)


@pytest.mark.parametrize("levels", LEVELS)
def test_bits_are_what_many_symbols_take(levels):
    n = 100_000
    assert 8 * coding.packed_nbytes(n, levels) / n == pytest.approx(
        coding.bits_per_symbol(levels), rel=1e-3
    )
    floor = math.log2(levels)
    assert floor <= coding.bits_per_symbol(levels) <= math.ceil(floor)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("levels", "data"),
    [
        (3, b"\xff" * 8),  # above 3^40
        (11, b"\xff" * 8),
        (250, b"\xff" + bytes(39)),  # a symbol of 255
        (3, b"\xff"),  # 255 >= 3^5
        (2, b"\xf0"),  # a bit behind the last symbol
    ],
)
def test_bytes_that_pack_does_not_give_are_refused(form, levels, data):
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    n = {8: packing(levels).digits or 8, 40: 40, 1: 5 if levels == 3 else 4}[len(data)]
    with use(form), pytest.raises(ValueError, match="must be"):
        coding.unpack(packed, n, levels)
    with use(form), pytest.raises(ValueError, match="must have"):
        coding.unpack(packed, n + 100, levels)


@pytest.mark.parametrize("levels", [3, 5, 6, 7, 9, 11])
def test_a_number_with_one_more_digit_is_refused(levels):
    """L to the number of digits is the first that has one more."""
    digits = packing(levels).digits
    n, last = 3 * digits + 4, -(-(levels**4 - 1).bit_length() // 8)
    good = coding.pack(symbols(n, levels), levels).numpy().tobytes()
    for place, width, count in ((8, 8, digits), (24, last, 4)):
        for above in (-1, 0):
            number = (levels**count + above).to_bytes(width, "little")
            data = bytearray(good[:place] + number + good[place + width :])
            packed = torch.frombuffer(data, dtype=torch.uint8)
            for form in FORMS:
                with use(form):
                    if above < 0:
                        coding.check(packed, n, levels)
                        found = coding.unpack(packed, n, levels)[digits * place // 8 :][:count]
                        assert (found == levels - 1).all()
                        continue
                    for refuses in (coding.check, coding.unpack):
                        with pytest.raises(ValueError, match="must be"):
                            refuses(packed, n, levels)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 9, 40])
@pytest.mark.parametrize("bucket", [1, 7, 1 << 14, 1 << 20])
def test_a_symbol_stands_for_its_level(levels, bucket):
    """To the bit, whether or not a bucket begins within what goes through the loops together."""
    n, rng = 40_001, np.random.default_rng(levels)
    found, book = symbols(n, levels), rng.standard_normal(levels).astype(np.float32)
    scales = rng.standard_normal(-(-n // bucket)).astype(np.float32)
    expected = book[found] * scales[np.arange(n) // bucket]
    tensors = torch.from_numpy(scales), bucket, torch.from_numpy(book)
    packed = coding.pack(found, levels)
    assert np.array_equal(coding.dequantize(packed, n, *tensors).numpy(), expected)
    out = torch.ones(n)
    coding.add_dequantized(packed, *tensors, out, 0.3)
    assert np.array_equal(out.numpy(), np.float32(1) + np.float32(0.3) * expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bucket", [1, 32, 100, 1 << 20])
def test_nearest_levels_by_brute_force(form, bucket):
    rng = np.random.default_rng(1)
    for count in (2, 3, 16, 300):
        levels = torch.from_numpy(np.unique(rng.normal(size=count).astype(np.float32)))
        values = torch.from_numpy(rng.normal(size=5000).astype(np.float32) * 1.5)
        scales = torch.from_numpy(
            np.exp2(rng.integers(-3, 3, -(-5000 // bucket))).astype(np.float32)
        )
        with use(form):
            packed = coding.quantize(values, scales, bucket, levels, rounding="nearest")
            found = coding.unpack(packed, 5000, len(levels)).long()
            sent = coding.dequantize(packed, 5000, scales, bucket, levels)
        y = (values / coding_eager.spread(scales, bucket, 5000)).double()
        distance = (y[:, None] - levels.double()).abs()
        nearest = distance.min(dim=1).values
        assert torch.equal(distance.gather(1, found[:, None])[:, 0], nearest)
        expected = levels[found] * coding_eager.spread(scales, bucket, 5000)
        assert torch.equal(sent, expected)


@pytest.mark.parametrize("rounding", ["nearest", "nearest-even"])
def test_ties(rounding):
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    values = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    for form in FORMS:
        with use(form):
            packed = coding.quantize(values, torch.ones(1), 4, levels, rounding=rounding)
            found = levels[coding.unpack(packed, 4, 5).long()].tolist()
        assert found == ([-2, -1, 0, 1] if rounding == "nearest" else [-2, 0, 0, 2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounding", coding.ROUNDINGS)
def test_symbols_do_not_depend_on_the_unit_of_a_bucket(form, rounding):
    """1/scale is infinite below 2^-128 and subnormal above 2^126; each bucket has its own."""
    levels, bucket = torch.linspace(-1, 1, 15), 32
    units = torch.exp2(torch.tensor([-149.0, -140, -127, -101, 0, 99, 126, 127]).double())
    ordinary = torch.rand(8, bucket, generator=torch.Generator().manual_seed(3)) * 2 - 1
    steps = 2.0**-20 * (2.0**20 * ordinary.double()).round()
    steps[0] = steps[0].round()  # 0 and the least float
    steps[1] = steps[1].mul(256).round() / 256
    values = (steps * units[:, None]).float().view(-1)
    with use(form):
        expected, found = (
            coding.to_symbols(x, scales, bucket, levels, rounding=rounding, key=KEY)
            for x, scales in (
                ((values.double().view(8, -1) / units[:, None]).float().view(-1), torch.ones(8)),
                (values, units.float()),
            )
        )
        packed = coding.quantize(values, units.float(), bucket, levels, rounding=rounding, key=KEY)
    assert torch.equal(found, expected)
    assert torch.equal(packed, coding.pack(expected, 15))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bucket", [100, 1 << 20])
def test_a_norm_beyond_float32_is_its_largest_number(form, bucket):
    most = torch.finfo(torch.float32).max
    for dtype in (torch.float32, torch.float64):
        values = torch.full((250,), -most, dtype=dtype)
        with use(form):
            for kind in ("l2", "max", "mean"):
                assert (coding.bucket_norms(values, bucket, kind) == most).all()
                wide = values.double() * 100
                assert (coding.bucket_norms(wide, bucket, kind) == most).all()
                for wrong in (torch.inf, torch.nan):
                    values[3] = wrong
                    assert not coding.bucket_norms(values, bucket, kind)[0].isfinite()
                    values[3] = -most


@pytest.mark.parametrize("form", FORMS)
def test_stochastic_rounding_takes_the_words_of_the_stream(form):
    """Element i goes up where its word is below the fraction of 2^32."""
    n, levels = 10_001, torch.linspace(-1, 1, 8)
    values = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    with use(form):
        packed = coding.quantize(values, torch.ones(1), n, levels, rounding="stochastic", key=KEY)
        found = coding.unpack(packed, n, 8).long()
    below = np.clip(np.searchsorted(levels.numpy(), values.numpy(), side="right") - 1, 0, 6)
    low, high = (levels.double().numpy()[below + i] for i in range(2))
    share = (values.double().numpy() - low) / (high - low)
    up = Stream(KEY).uniform(n).numpy() < share
    assert (found.numpy() != below + up).sum() <= 1  # the last bit of a quotient


@pytest.mark.parametrize("form", FORMS)
def test_stochastic_rounding_is_unbiased(form):
    n, levels = 200_000, torch.tensor([-1.0, -0.3, 0.0, 0.1, 0.7, 1.0])
    for value in (-0.9, -0.05, 0.02, 0.5, 0.99):
        with use(form):
            values = torch.full((n,), value)
            packed = coding.quantize(
                values, torch.ones(1), n, levels, rounding="stochastic", key=KEY
            )
            sent = coding.dequantize(packed, n, torch.ones(1), n, levels).double()
        assert abs(float(sent.mean()) - value) < 4 * float(sent.std()) / math.sqrt(n)
        assert len(sent.unique()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", SIZES)
def test_both_forms_give_the_same_bytes(dtype, n):
    generator = torch.Generator().manual_seed(n)
    values = (torch.randn(n, generator=generator) ** 3).to(dtype)
    if n > 100:
        values[[5, 50]] = torch.tensor([torch.inf, torch.nan], dtype=dtype)
        values[[6, 51]] = torch.tensor([-torch.inf, -torch.nan], dtype=dtype)
        values[60:99] = 0
    levels = torch.linspace(-1, 1, 15)
    for bucket in (1, 32, 500, max(n, 1)):
        norms = {}
        for form in FORMS:
            with use(form):
                norms[form] = [
                    coding.bucket_norms(values, bucket, k) for k in ("l2", "max", "mean")
                ]
        for ours, definition in zip(*norms.values(), strict=True):
            torch.testing.assert_close(ours, definition, rtol=1e-6, atol=0, equal_nan=True)
        for rounding in coding.ROUNDINGS:
            packed = {}
            for form in FORMS:
                with use(form):
                    packed[form] = coding.quantize(
                        values, norms["eager"][1], bucket, levels, rounding=rounding, key=KEY
                    )
            assert torch.equal(packed["auto"], packed["eager"])


@pytest.mark.parametrize("bucket", [1, 7, 1000, 1 << 19, (1 << 19) + 1, 1 << 21])
@pytest.mark.slow
def test_norms_against_numpy(bucket):
    n = (1 << 20) + 77
    values = torch.randn(n, generator=torch.Generator().manual_seed(2))
    starts, sizes = np.arange(0, n, bucket), np.full(-(-n // bucket), bucket)
    sizes[-1] = n - starts[-1]
    magnitudes = values.abs().double().numpy()
    norms = {
        "l2": np.sqrt(np.add.reduceat(magnitudes**2, starts)),
        "max": np.maximum.reduceat(magnitudes, starts),
        "mean": np.add.reduceat(magnitudes, starts) / sizes,
    }
    if bucket > 1:
        for kind, expected in norms.items():
            np.testing.assert_allclose(
                coding.bucket_norms(values, bucket, kind), expected, rtol=1e-6
            )
    else:
        assert torch.equal(coding.bucket_norms(values, 1, "max"), values.abs())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adding_is_decoding_and_adding(form, dtype):
    n, levels = 9001, torch.linspace(-2, 2, 11)
    packed = coding.pack(symbols(n, 11), 11)
    scales = torch.rand(-(-n // 64), generator=torch.Generator().manual_seed(3))
    books = torch.randn(-(-n // 64), 11, generator=torch.Generator().manual_seed(4))
    for of_bucket, table in ((scales, levels), (None, books)):
        out = torch.full((n,), 0.5, dtype=dtype)
        expected = out.clone()
        with use(form):
            decoded = coding.dequantize(packed, n, of_bucket, 64, table)
            coding.add_dequantized(packed, of_bucket, 64, table, out, 0.25)
        chosen = symbols(n, 11)
        rows = torch.arange(n) // 64
        by_hand = levels[chosen] * scales[rows] if of_bucket is not None else books[rows, chosen]
        assert torch.equal(decoded, by_hand)
        expected.add_(by_hand, alpha=0.25)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)


def test_every_float_that_begins_alike_is_rounded_alike():
    """Odd NaN, infinities, both zeros, subnormals, and the neighbours of every boundary."""
    patterns = [0x7F800001, 0xFF800001, 0x7FC00000, 0x7F800000, 0xFF800000, 0, 1 << 31, 1]
    odd = torch.tensor(np.array(patterns, np.uint32).view(np.int32)).view(torch.float32)
    for count in (2, 3, 15, 247):
        levels = torch.linspace(-1, 1, count)
        edges = torch.cat([levels, (levels[1:] + levels[:-1]) / 2])
        near = [torch.nextafter(edges, torch.full_like(edges, end)) for end in (-9.0, 9.0)]
        values = torch.cat([odd, edges, *near])
        for rounding in coding.ROUNDINGS:
            seen = []
            for form in FORMS:
                with use(form):
                    seen.append(
                        coding.to_symbols(
                            values, torch.ones(1), len(values), levels, rounding=rounding, key=KEY
                        )
                    )
            assert torch.equal(*seen)


def test_threads_change_no_bit():
    values, levels = torch.randn(2_000_003), torch.linspace(-3, 3, 15)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            norms = coding.bucket_norms(values, 512, "l2")
            packed = coding.quantize(values, norms, 512, levels, rounding="stochastic", key=KEY)
            seen.append((norms, packed))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_arguments_are_checked():
    values, scales, levels = torch.ones(4), torch.ones(1), torch.tensor([-1.0, 1.0])
    with pytest.raises(ValueError, match="rounding must be one of"):
        coding.quantize(values, scales, 4, levels, rounding="up")
    with pytest.raises(ValueError, match="key must be given"):
        coding.quantize(values, scales, 4, levels, rounding="stochastic")
    with pytest.raises(ValueError, match="levels must be 2 to 65,536"):
        coding.pack(torch.zeros(3), 1)
    for symbols, got in (([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")):
        with pytest.raises(ValueError, match=rf"symbols must lie in \[0, 3\), got {got}"):
            coding.pack(torch.tensor(symbols), 3)
    with pytest.raises(ValueError, match="scales must be 2"):
        coding.quantize(values, scales, 2, levels, rounding="nearest")
    with pytest.raises(ValueError, match="kind must be one of"):
        coding.bucket_norms(values, 2, "l1")


@pytest.mark.parametrize("form", FORMS)
def test_bytes_that_are_wrong_are_not_added(form):
    out, levels = torch.zeros(16), torch.linspace(-1, 1, 15)
    with use(form):
        for data, scales, message in (
            (torch.zeros(7, dtype=torch.uint8), torch.ones(1), "must have 8 bytes"),
            (torch.zeros(8, dtype=torch.uint8), torch.ones(2), "scales must be 1"),
        ):
            with pytest.raises(ValueError, match=message):
                coding.add_dequantized(data, scales, 16, levels, out, 1.0)


@pytest.mark.parametrize("levels", [2, 3, 15, 250, 257, 65_535])
def test_symbols_out_of_range_are_the_last_level_without_a_look_at_them(levels):
    """Random bytes are mostly no symbols; each is a level, and no read tells the host which."""
    n, book = 1000, torch.linspace(-1, 1, levels)
    data = np.random.default_rng(0).integers(0, 256, packing(levels).nbytes(n), np.uint8)
    packed, out = torch.from_numpy(data), torch.zeros(n)
    with use("eager"), counting_host_reads(packed, book, out) as counted:
        coding.add_dequantized(packed, out.new_ones(1), n, book, out, 1.0)
        trusted = coding.unpack(packed, n, levels, trusted=True)
    assert not counted.sites
    assert torch.equal(out, book[trusted.long()])
    number, rule = int.from_bytes(data.tobytes(), "little"), packing(levels)
    if rule.digits:
        first = int.from_bytes(data[:8].tobytes(), "little")
        expected = [first // levels**i % levels for i in range(rule.digits)]
    else:
        mask = (1 << rule.bits) - 1
        expected = [min(number >> (i * rule.bits) & mask, levels - 1) for i in range(n)]
    assert trusted[: len(expected)].tolist() == expected


def test_numba_refuses_symbols_out_of_range():
    data, levels = torch.full((8,), 255, dtype=torch.uint8), torch.linspace(-1, 1, 15)
    with pytest.raises(ValueError, match="must be below 15"):
        coding.add_dequantized(data, torch.ones(1), 16, levels, torch.zeros(16), 1.0)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_kernel_of_torch_runs_without_the_host(levels):
    """Only checks of unknown bytes and symbols read, once each."""
    values, book = torch.randn(1000, generator=torch.Generator().manual_seed(1)), levels_of(levels)
    with use("eager"), counting_host_reads(values, book) as counted:
        norms = coding.bucket_norms(values, 64, "max")
        packed = coding.quantize(values, norms, 64, book, rounding="stochastic", key=KEY)
        coding.steadied(values, norms * 2.0**-120, 64)
        coding.dequantize(packed, 1000, norms, 64, book)
        coding.pack(coding.unpack(packed, 1000, levels, trusted=True), levels, trusted=True)
        assert not counted.sites
        coding.pack(coding.unpack(packed, 1000, levels), levels)
    assert (counted.reads, counted.uploads) == (2, 0)


def levels_of(count):
    return torch.linspace(-1, 1, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_buckets_are_steadied_by_one_product_in_float64(dtype):
    """Multiplying twice in float32 rounds as multiplying once in float64 does."""
    grown = torch.logspace(-45, 38, 64 * 30, dtype=torch.float64)
    values = (grown * torch.tensor([1.0, -1.3]).double().repeat(960)).to(dtype)
    scales = torch.logspace(-44, 38, 30, dtype=torch.float64).float()
    with use("eager"):
        moved, steady = coding.steadied(values, scales, 64)
    power = np.where((scales < 2.0**-100) | (scales > 2.0**100), -np.frexp(scales.numpy())[1], 0)
    factors = torch.from_numpy(np.exp2(power.astype(np.float64)))
    expected = values.double().view(30, 64) * factors[:, None]
    assert torch.equal(moved, expected.float().view(-1))
    assert torch.equal(steady, (scales.double() * factors).float())
    assert (power != 0).sum() > 5
