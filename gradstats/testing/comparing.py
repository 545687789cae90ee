"""Comparisons of tensors: bit by bit, as numbers, and within a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor


def same(actual: Tensor, expected: Tensor) -> bool:
    """Equality bit by bit, so that NaN equals itself."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if not actual.numel():
        return True
    pairs = (each.reshape(-1).contiguous().view(torch.uint8) for each in (actual, expected))
    return torch.equal(*pairs)


def equal(actual: Tensor, expected: Tensor) -> bool:
    """Equality of numbers: 0 equals -0, and NaN equals itself."""
    return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Equality within a share of the largest expected element."""
    return bool(((actual - expected).abs() <= tolerance * expected.abs().max()).all())
