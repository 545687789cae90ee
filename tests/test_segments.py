"""Summaries of the segments of one vector, of any stride, and how little they hold."""

import numpy as np
import pytest
import torch

from gradstats.summary import summarize, summarize_segments

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_short_and_long_vectors_are_counted_alike(dtype):
    """Sorted keys below 8,192 elements, tables above: the sum of short ones is the long one."""
    flat = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = summarize_segments(flat, range(0, 20_001, 1_000))
    joined, whole = sum(parts[1:], parts[0]), summarize(flat)
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


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
