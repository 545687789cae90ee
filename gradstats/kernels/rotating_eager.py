"""Rotations as plain torch on any device: the definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradstats.kernels.coding_eager import words


def rotate(values: Tensor, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.rotate`."""
    filled = torch.nn.functional.pad(values.to(torch.float32), (0, -values.numel() % block))
    return _hadamard(filled * _signs(len(filled), key, filled.device), block)


def unrotate(rotated: Tensor, n: int, block: int, key: tuple[int, int]) -> Tensor:
    """See `rotating.unrotate`."""
    return (_hadamard(rotated, block) * _signs(len(rotated), key, rotated.device))[:n]


def _signs(n: int, key: tuple[int, int], device: torch.device) -> Tensor:
    bits = words(-(-n // 32), key, device).unsqueeze(1) >> torch.arange(32, device=device) & 1
    return (1 - 2 * bits.reshape(-1)[:n]).to(torch.float32)


def _hadamard(x: Tensor, block: int) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of every block, `[n]`."""
    step = 1
    while step < block:
        pairs = x.view(-1, 2, step)
        x = torch.cat([pairs[:, :1] + pairs[:, 1:], pairs[:, :1] - pairs[:, 1:]], dim=1).view(-1)
        step *= 2
    return x * (1 / math.sqrt(block))
