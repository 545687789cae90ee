"""Summaries survive as bytes, and bytes that are none are refused."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstats.summary import summarize
from gradstats.summary.encoding import from_bytes, to_bytes

VALUES = [0.0, 1.0, -1.0, 1.0009765625, -3.5, 6e-8, 1e-7, float("nan")]
OF_VERSION_1 = {  # of VALUES, as the first release wrote them
    "float16": "01010000000202010103000000080000000000000001000000000000000100000000000000000000"
    "00000000000000000000000000000000e8fffd03c00000000c00011a400a00002000812e40000000"
    "0000000c40000000000000f03f00008007e000020200000101",
    "bfloat16": "01010000000302010104000000080000000000000001000000000000000100000000000000000000"
    "00000000000000000000000000000080eaffff03c00000c00a00001a400800000000802e40000000"
    "0000000c40000000000000f03f81335600a90be0000101020000000101",
    "float32": "01010000000002010104000000080000000000000001000000000000000100000000000000000000"
    "00000000000000000000000000207186eafffd03c070c7bc0a00011a400800002000812e40000000"
    "0000000c40000000000000f03f80335600aa0be0000101020000000101",
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def gradients():
    generator = torch.Generator().manual_seed(5)
    for dtype in DTYPES:
        for scale in (1e-6, 1.0, 1e4):
            yield (scale * torch.randn(3000, generator=generator)).to(dtype)
    yield torch.zeros(0)
    yield torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -3.0])
    yield torch.full((70_000,), 2.0)


def test_summaries_come_back_to_the_bit():
    summaries = [summarize(grad, fraction=0.25) for grad in gradients()]
    assert from_bytes(to_bytes(summaries)) == summaries
    assert from_bytes(to_bytes([])) == []


def test_columns_are_as_narrow_as_their_largest_number():
    """By the widths that each Summary's head begins with, after the dtype."""
    steps = [torch.tensor([2.0**-3, 2.0**power]) for power in (-2, -1, 60)]  # 128, 256, 8064 bins
    for grad, first in zip(steps, (2, 2, 2), strict=True):
        data = to_bytes([summarize(grad)])
        assert list(data[6:9]) == [first, 1, 1]
    summary = summarize(torch.cat([torch.full((300,), 2.0), torch.full((70_000,), -2.0)]))
    assert list(to_bytes([summary])[6:9]) == [2, 2, 4]
    wide = replace(summary, positive=summary.positive.astype(np.int64))
    assert to_bytes([wide]) == to_bytes([summary])


def test_a_summary_takes_a_few_kilobytes():
    grad = torch.distributions.Laplace(0, 1e-3).sample((1_000_000,))
    assert len(to_bytes([summarize(grad)])) < 14_000


@settings(max_examples=200)
@given(st.data())
def test_damage_is_named_or_gives_summaries(data):
    whole = to_bytes([summarize(torch.tensor([1.0, -2.0, 0.5]))])
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="cannot read Summaries"):
        from_bytes(whole[:cut])
    with pytest.raises(ValueError, match="cannot read Summaries"):
        from_bytes(whole + b"x")
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    mutant = bytes([*whole[:place], byte, *whole[place + 1 :]])
    with suppress(ValueError):
        from_bytes(mutant)


@pytest.mark.parametrize("name", OF_VERSION_1)
def test_version_1_is_read_as_before(name):
    (old,) = from_bytes(bytes.fromhex(OF_VERSION_1[name]))
    grad = torch.tensor(VALUES).to(getattr(torch, name))
    new = summarize(grad)
    sums = "n", "zeros", "nan", "total", "total_abs", "total_sq", "max_abs", "dtype", "fraction"
    assert all(getattr(old, each) == getattr(new, each) for each in sums)
    magnitudes = grad.double().abs()[[1, 2, 3, 4, 5, 6]].sort().values.numpy()
    low, high = (np.repeat(edge, old.counts) for edge in old.edges)
    assert np.all((low <= magnitudes) & (magnitudes <= high))
    assert np.all(high <= low * (1 + 1 / 128) + 8 * 2.0**-24)
    if name == "bfloat16":
        assert old == new
        return
    assert old.version == 1
    with pytest.raises(ValueError, match=f"grid of {name} in version 1 and in version 2"):
        old + new
    with pytest.raises(ValueError, match="cannot write a Summary: it is of version 1"):
        to_bytes([old])
    assert (old + old).n == 2 * len(VALUES)


def test_sums_out_of_the_range_of_squares_come_back():
    generator = torch.Generator().manual_seed(1)
    for scale in (1e200, 1e-200, 1e-310):
        grad = scale * torch.randn(3000, generator=generator, dtype=torch.float64)
        summary = summarize(grad)
        (read,) = from_bytes(to_bytes([summary]))
        assert read == summary
        assert (read.sums, read.total_log) == (summary.sums, summary.total_log)
        assert read.moments() == summary.moments()
    (few,) = from_bytes(to_bytes([summarize(torch.ones(9) * 0.3)]))
    assert few.total_log == pytest.approx(9 * np.log(np.float32(0.3)), rel=1e-12)


def test_versions_to_come_and_none_are_refused():
    data = to_bytes([])
    for version, fact in ((3, "version 3 is newer than 2"), (0, "version 0 was never written")):
        with pytest.raises(ValueError, match=fact):
            from_bytes(bytes([version, *data[1:]]))
