"""Rotations are Hadamard matrices after random signs, with the same bits in both forms."""

import math

import pytest
import torch
from scipy.linalg import hadamard

from gradstats.kernels import rotating
from gradstats.kernels.forms import use
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
