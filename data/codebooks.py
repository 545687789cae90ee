"""Writes gradstats/payloads/codebooks.npz, the levels of `Gauss` and `Lattice` alphabets.

    python data/codebooks.py

They are constants of the payload format: a receiver reads them and computes none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from gradstats.compressors.max_quantizer import levels
from gradstats.payloads.codebooks import CLIP

Floats = NDArray[np.float64]
FILE = Path(__file__).parents[1] / "gradstats" / "payloads" / "codebooks.npz"
BITS = range(1, 9)
WIDEST_GRID = 255


def gauss(bits: int) -> Floats:
    """The positive levels of the Lloyd-Max quantiser of the standard normal law."""
    return levels("gennorm", 2.0, bits) * 2**0.5


def lattice(bits: int, grid: int) -> list[int]:
    """2^bits of the integers 0 … grid that lose least of a clipped normal law; see `Lattice`."""
    loss = rounding_loss(grid)
    best, before = loss[0], []
    for _ in range((1 << bits) - 2):
        # the last level may move to any point, from any before it
        every = best[:, None] + loss
        before.append(every.argmin(0))
        best = every.min(0)
    places = [grid]
    for choice in reversed(before):
        places.append(int(choice[places[-1]]))
    return [0, *reversed(places)]


def rounding_loss(grid: int) -> Floats:
    """What rounding at random between points i < j of the grid loses, `[i, j]`; inf elsewhere."""
    points = CLIP * (2 * np.arange(grid + 1) / grid - 1)
    density = np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
    mass = ndtr(points)
    low, high = points[:, None], points
    zeroth = mass - mass[:, None]
    first = density[:, None] - density
    second = zeroth + (points * density)[:, None] - points * density
    loss = (low + high) * first - second - low * high * zeroth
    return np.where(low < high, loss, np.inf)


def main() -> None:
    """Compute all of them, about ten seconds."""
    lattices = [lattice(b, g) for b in BITS for g in range((1 << b) - 1, WIDEST_GRID + 1)]
    np.savez_compressed(
        FILE,
        gauss=np.concatenate([gauss(b) for b in BITS]),
        lattice=np.concatenate(lattices).astype(np.uint8),
    )


if __name__ == "__main__":
    main()
