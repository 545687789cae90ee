"""Inner products of a gradient and what became of it in numba: one pass over the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.comparing_eager import Products
from gradstats.kernels.compiling import jit, jit_sums
from gradstats.kernels.counting_cpu_loops import BLOCK
from gradstats.kernels.threads import in_threads


def products(grad: Tensor, update: Tensor, compensated: Tensor, residual: Tensor) -> Products:
    """See `gradstats.kernels.products`."""
    arrays = [each.numpy() for each in (grad, update, compensated, residual)]
    sums = np.zeros((-(-len(grad) // BLOCK), len(Products._fields)))

    def work(chunks: Iterator[slice]) -> None:
        for chunk in chunks:  # of whole blocks
            rows = sums[chunk.start // BLOCK :]
            sum_products(*(array[chunk] for array in arrays), rows)

    in_threads(work, len(grad))
    return Products(*sums.sum(axis=0).tolist())


@jit
def sum_products(
    grad: NDArray[Any],
    update: NDArray[Any],
    compensated: NDArray[Any],
    residual: NDArray[Any],
    sums: NDArray[np.float64],
) -> None:
    """Sum every block of the vectors into a row."""
    for block in range((grad.size + BLOCK - 1) // BLOCK):
        one = slice(block * BLOCK, (block + 1) * BLOCK)
        row = sum_block_products(grad[one], update[one], compensated[one], residual[one])
        for i in range(len(row)):
            sums[block, i] = row[i]


@jit_sums
def sum_block_products(
    grad: NDArray[Any], update: NDArray[Any], compensated: NDArray[Any], residual: NDArray[Any]
) -> tuple[float, float, float, float, float, float, float]:
    """Sum the products of a block, in the order of `Products`."""
    gg = ss = gs = lost = vv = missed = ee = 0.0
    for i in range(grad.size):
        g, s = np.float64(grad[i]), np.float64(update[i])
        v, e = np.float64(compensated[i]), np.float64(residual[i])
        gg += g * g
        ss += s * s
        gs += g * s
        lost += (g - s) * (g - s)
        vv += v * v
        missed += (v - s) * (v - s)
        ee += e * e
    return gg, ss, gs, lost, vv, missed, ee
