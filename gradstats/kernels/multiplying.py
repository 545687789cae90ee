"""Products of large matrices and narrow factors, which read memory once.

The plain torch here defines what they do; on the host `multiplying_cpu` does it in numba. Sums of
products are rounded in the order of each, so that the two agree as closely as two libraries do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradstats.kernels.forms import in_numba

NARROW = 4  # columns up to which a factor is multiplied faster than by a library


def multiply(matrix: Tensor, factor: Tensor, out: Tensor) -> None:
    """Put M F into `out`.

    Args:
        matrix: M, `[h, w]`, float32 or float64; best if it or its transpose is contiguous.
        factor: F, `[w, r]`, of the same dtype.
        out: `[h, r]`, contiguous.
    """
    by_rows, by_columns = matrix.is_contiguous(), matrix.T.is_contiguous()
    if _in_numba(factor) and (by_rows or by_columns):
        from gradstats.kernels import multiplying_cpu

        form = multiplying_cpu.by_rows if by_rows else multiplying_cpu.by_columns
        form(matrix, factor, out)
    elif by_columns:
        out.copy_(torch.mm(factor.T, matrix.T).T)
    else:
        torch.mm(matrix, factor, out=out)


def multiply_sum(terms: tuple[Tensor, Tensor], total: Tensor, factor: Tensor, out: Tensor) -> None:
    """Put A + B into `total`, and (A + B) F into `out`, which has the bits of `multiply`.

    Args:
        terms: A and B, `[h, w]`.
        total: `[h, w]`.
        factor: F, `[w, r]`.
        out: `[h, r]`, contiguous.
    """
    if _in_numba(factor) and all(each.is_contiguous() for each in (*terms, total)):
        from gradstats.kernels import multiplying_cpu

        multiplying_cpu.sum_by_rows(terms, total, factor, out)
        return
    torch.add(*terms, out=total)
    multiply(total, factor, out)


def _in_numba(factor: Tensor) -> bool:
    return in_numba(factor) and factor.shape[1] <= NARROW
