"""Summaries survive as bytes, and bytes that are none are refused."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstats.summary import summarize
from gradstats.summary_bytes import from_bytes, to_bytes

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
