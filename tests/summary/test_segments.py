"""Summaries of the segments of one vector, of any stride, and how little they hold."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle, islice, pairwise

import numpy as np
import pytest
import torch

from gradstats.kernels import counting_cpu, forms
from gradstats.summary import summarize, summarize_segments
from gradstats.summary.encoding import to_bytes

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LENGTHS = (1, 64, 0, 1000, 2, 65, 0, 8192, 63, 16_385, 3, 100_000, 1, 0)


def kinds(dtype, n, rng):
    """Values of every kind, `[n]` each."""
    integers = {2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]
    normal = rng.standard_normal(n)
    sign = np.sign(normal)
    top = torch.finfo(dtype).max
    for values in (normal, normal * 10.0 ** rng.uniform(-6, 4, n), 0 * sign, sign * math.inf):
        yield torch.from_numpy(values).to(dtype)
    for values in (np.where(rng.random(n) < 0.02, normal, 0 * sign), np.full(n, -0.37)):
        yield torch.from_numpy(values).to(dtype)
    for values in (np.where(rng.random(n) < 0.1, math.nan, normal), np.full(n, math.nan)):
        yield torch.from_numpy(values).to(dtype)
    yield torch.from_numpy(np.where(rng.random(n) < 0.5, sign * top, normal)).to(dtype)
    subnormal = torch.from_numpy(rng.integers(0, 300, n).astype(integers)).view(dtype)
    yield torch.where(torch.from_numpy(sign) > 0, subnormal, -subnormal)
    patterns = rng.integers(0, np.iinfo(integers).max, n, dtype=integers, endpoint=True)
    yield torch.from_numpy(patterns).view(dtype)


@cache
def mixed(dtype):
    """A vector and its offsets: every length of LENGTHS filled with every kind."""
    rng = np.random.default_rng(7)
    parts = [part for n in LENGTHS for part in kinds(dtype, n, rng)]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    return torch.cat(parts), np.append(0, np.cumsum([len(part) for part in parts]))


def bins_of(magnitudes, dtype):
    """By exponent and leading bits of the mantissa; subnormals are evenly spaced.

    All bits of 16-bit dtypes; of the others 7, and whether there are more.
    """
    tiny, narrow = torch.finfo(dtype).tiny, dtype.itemsize == 2
    cells = round(1 / torch.finfo(dtype).eps) if narrow else 128
    mantissa, exponent = np.frexp(magnitudes)
    subnormal = magnitudes < tiny
    octaves = np.where(subnormal, 0, exponent - math.frexp(tiny)[1] + 1)
    inside = np.where(subnormal, magnitudes / tiny, mantissa * 2 - 1) * cells
    cell = octaves * cells + np.floor(inside).astype(int)
    return cell if narrow else 2 * cell + (inside % 1 != 0)


def check(summary, segment):
    """Against brute force in float64."""
    wide = segment.double().numpy()
    finite = wide[np.isfinite(wide)]
    for sign, counts in ((1, summary.positive), (-1, summary.negative)):
        there = bins_of(np.abs(finite[finite * sign > 0]), segment.dtype)
        bins, expected = np.unique(there, return_counts=True)
        np.testing.assert_array_equal(summary.bins[counts > 0], bins)
        np.testing.assert_array_equal(counts[counts > 0], expected)
    assert np.all(summary.counts > 0)
    assert (summary.n, summary.zeros) == (len(wide), (wide == 0).sum())
    infinite = (summary.positive_inf, summary.negative_inf)
    assert infinite == ((wide == math.inf).sum(), (wide == -math.inf).sum())
    assert summary.nan == np.isnan(wide).sum()
    assert summary.max_abs == np.abs(finite).max(initial=0)
    with np.errstate(over="ignore"):  # of what the square of a large float64 is
        squares = math.inf if np.isinf(finite**2).any() else math.fsum(finite**2)
    scale = np.ldexp(1.0, -20)  # fsum refuses a sum beyond the range
    slack = 1e-12 * math.fsum(np.abs(finite) * scale)
    if not math.isinf(summary.total_abs):
        assert summary.total * scale == pytest.approx(math.fsum(finite * scale), abs=slack)
        assert summary.total_abs * scale == pytest.approx(slack * 1e12, rel=1e-12)
    assert summary.total_sq == pytest.approx(squares, rel=1e-12)


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")  # in huge float64
@pytest.mark.parametrize("numba", [True, False], ids=["numba", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_segments_of_every_length_and_kind(dtype, numba, monkeypatch):
    monkeypatch.setattr(forms, "HAVE_NUMBA", numba)
    flat, offsets = mixed(dtype)
    found = summarize_segments(flat, offsets, fraction=0.5)
    for (start, end), summary in zip(pairwise(offsets), found, strict=True):
        alone = summarize(flat[start:end], fraction=0.5)
        assert to_bytes([summary]) == to_bytes([alone])  # a sum of huge float64 may be NaN
        check(summary, flat[start:end])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_segment_is_summarised_as_if_alone(dtype):
    flat = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    flat[::7] = 0
    flat[[5, 40_000]] = torch.tensor([torch.nan, -torch.inf]).to(dtype)
    offsets = [0, 0, 1, 10, 10, 5_000, 30_000, 59_999, 60_000]
    found = summarize_segments(flat, offsets)
    for start, end, summary in zip(offsets[:-1], offsets[1:], found, strict=True):
        assert summary == summarize(flat[start:end])
    whole = sum(found[1:], found[0])
    assert (whole.bins == summarize(flat).bins).all()
    assert (whole.counts == summarize(flat).counts).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_short_and_long_vectors_are_counted_alike(dtype):
    """Many share a table below half a million elements, threads have their own above."""
    flat = torch.randn(600_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = summarize_segments(flat, range(0, 600_001, 1_000))
    joined, whole = sum(parts[1:], parts[0]), summarize(flat)
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_where_a_run_of_segments_ends_changes_no_count(chunk, monkeypatch):
    flat, offsets = mixed(torch.float32)
    offsets = offsets[: np.searchsorted(offsets, 20_000)]
    flat = flat[: offsets[-1]]
    expected = summarize_segments(flat, offsets)
    monkeypatch.setattr(counting_cpu, "CHUNK", chunk)
    found = summarize_segments(flat, offsets)
    for one, other in zip(found, expected, strict=True):
        for name in ("bins", "positive", "negative", "n", "zeros", "nan", "max_abs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand_short_segments_take_one_call(dtype, monkeypatch):
    calls = []
    name = "tally_wide" if dtype.itemsize > 2 else "tally_16_bit"
    loop = getattr(counting_cpu.over_tables, name)
    monkeypatch.setattr(
        counting_cpu.over_tables, name, lambda *arguments: calls.append(1) or loop(*arguments)
    )
    assert len(summarize_segments(torch.ones(64_000, dtype=dtype), range(0, 64_001, 64))) == 1_000
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")
def test_threads_do_not_disturb_each_other():
    """Each has a table of counts that it leaves empty."""
    jobs = list(islice(cycle(DTYPES), 16))
    expected = {dtype: summarize_segments(*mixed(dtype)) for dtype in DTYPES}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda dtype: summarize_segments(*mixed(dtype)), jobs)
        for dtype, each in zip(jobs, found, strict=True):
            assert to_bytes(each) == to_bytes(expected[dtype])


def test_a_summary_does_not_keep_its_neighbours():
    """Else one that is kept would hold the arrays of all parameters."""
    for summary in summarize_segments(torch.randn(6_400), range(0, 6_401, 64)):
        assert all(each.base is None for each in (summary.bins, summary.positive))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "got \\[\\]"),
        ([0, 5], "from 0 to 10, got \\[0, 5\\]"),
        ([1, 10], "got \\[1, 10\\]"),
        ([0, 7, 3, 10], "got \\[0, 7, 3, 10\\]"),
    ],
)
def test_offsets_that_do_not_divide_the_vector_are_named(offsets, message):
    with pytest.raises(ValueError, match=f"offsets must rise .*{message}"):
        summarize_segments(torch.ones(10), offsets)
    with pytest.raises(ValueError, match=r"one dimension, got shape \(2, 5\)"):
        summarize_segments(torch.ones(2, 5), [0, 10])


def test_ten_thousand_parameters_hold_under_200_mb():
    rng = torch.Generator().manual_seed(2)
    numel = 2_500
    some = torch.randn(500 * numel, generator=rng) * torch.rand(
        500, generator=rng
    ).repeat_interleave(numel)
    found = summarize_segments(some, range(0, len(some) + 1, numel))
    held = sum(part.bins.nbytes + part.positive.nbytes + part.negative.nbytes for part in found)
    assert held * 10_000 / 500 < 200e6


STRIDES = {
    "transposed": lambda x: x.t(),
    "every third": lambda x: x[:, ::3],
    "expanded": lambda x: x[:1].expand(9, -1),
    "channels last": lambda x: x.reshape(4, 5, 6, 30).to(memory_format=torch.channels_last),
    "flipped": lambda x: x.flip(0),
    "scalar": lambda x: x[3, 4],
}


@pytest.mark.parametrize("how", STRIDES)
def test_any_stride_is_summarised(how):
    matrix = torch.randn(60, 60, generator=torch.Generator().manual_seed(3))
    view = STRIDES[how](matrix)
    one, other = summarize(view), summarize(view.clone(memory_format=torch.contiguous_format))
    assert one.n == view.numel()
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.total_sq == pytest.approx(other.total_sq, rel=1e-12)
