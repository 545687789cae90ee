"""`multiplying` in numba, threaded by us: rows or columns of a matrix are shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats.kernels.compiling import jit, jit_sums
from gradstats.kernels.threads import CHUNK, in_threads, shared

ROWS = 8  # that are added, then multiplied while they are in the cache


@jit_sums
def _by_rows(matrix: NDArray[Any], columns: NDArray[Any], out: NDArray[Any]) -> None:
    """Sum products along rows: two columns of the factor at a time, in vector lanes."""
    zero = matrix.dtype.type(0)
    rank = columns.shape[0]
    for i in range(matrix.shape[0]):
        row = matrix[i]
        for k in range(0, rank - 1, 2):
            first, second = columns[k], columns[k + 1]
            one, two = zero, zero
            for j in range(row.size):
                one += row[j] * first[j]
                two += row[j] * second[j]
            out[i, k] = one
            out[i, k + 1] = two
        if rank % 2:
            last = columns[rank - 1]
            one = zero
            for j in range(row.size):
                one += row[j] * last[j]
            out[i, rank - 1] = one


@jit
def _add(first: NDArray[Any], second: NDArray[Any], total: NDArray[Any]) -> None:
    for i in range(total.shape[0]):
        a, b, c = first[i], second[i], total[i]
        for j in range(c.size):
            c[j] = a[j] + b[j]


@jit
def _sum_by_rows(
    first: NDArray[Any],
    second: NDArray[Any],
    total: NDArray[Any],
    columns: NDArray[Any],
    out: NDArray[Any],
) -> None:
    for i in range(0, total.shape[0], ROWS):
        j = min(i + ROWS, total.shape[0])
        _add(first[i:j], second[i:j], total[i:j])
        _by_rows(total[i:j], columns, out[i:j])


@jit_sums
def _down(matrix: NDArray[Any], factor: NDArray[Any], span: tuple[int, int], out: Any) -> None:
    """Add rows times their elements of the factor, four rows at a time, in some columns."""
    start, stop = span
    whole = matrix.shape[0] - matrix.shape[0] % 4
    for i in range(0, whole, 4):
        a, b = matrix[i, start:stop], matrix[i + 1, start:stop]
        c, d = matrix[i + 2, start:stop], matrix[i + 3, start:stop]
        for k in range(factor.shape[1]):
            to = out[k, start:stop]
            p, q, r, s = factor[i, k], factor[i + 1, k], factor[i + 2, k], factor[i + 3, k]
            for j in range(to.size):
                to[j] += (p * a[j] + q * b[j]) + (r * c[j] + s * d[j])
    for i in range(whole, matrix.shape[0]):
        a = matrix[i, start:stop]
        for k in range(factor.shape[1]):
            to = out[k, start:stop]
            p = factor[i, k]
            for j in range(to.size):
                to[j] += p * a[j]


def by_rows(matrix: Tensor, factor: Tensor, out: Tensor) -> None:
    """See `multiplying.multiply`, of a contiguous matrix."""
    array, columns, target = matrix.numpy(), factor.T.contiguous().numpy(), out.numpy()
    _over(lambda a, b: _by_rows(array[a:b], columns, target[a:b]), *array.shape)


def by_columns(matrix: Tensor, factor: Tensor, out: Tensor) -> None:
    """See `multiplying.multiply`, of a matrix whose transpose is contiguous."""
    array, rows = matrix.T.numpy(), factor.contiguous().numpy()
    sums = torch.zeros_like(out.T, memory_format=torch.contiguous_format)
    width, target = array.shape[1], sums.numpy()
    threads = torch.get_num_threads() if array.size > CHUNK else 1
    share = -(-width // threads)  # long stretches of every row
    spans = [(start, min(start + share, width)) for start in range(0, width, share)]

    def of_thread(spans: Iterator[tuple[int, int]]) -> None:
        for span in spans:
            _down(array, rows, span, target)

    shared(of_thread, iter(spans), threads)
    out.copy_(sums.T)


def sum_by_rows(terms: tuple[Tensor, Tensor], total: Tensor, factor: Tensor, out: Tensor) -> None:
    """See `multiplying.multiply_sum`, of contiguous matrices."""
    first, second, array, target = (each.numpy() for each in (*terms, total, out))
    columns = factor.T.contiguous().numpy()
    _over(
        lambda a, b: _sum_by_rows(first[a:b], second[a:b], array[a:b], columns, target[a:b]),
        *array.shape,
    )


def _over(work: Callable[[int, int], None], lines: int, length: int) -> None:
    """Share out lines, each of so many elements, over threads."""

    def of_thread(parts: Iterator[slice]) -> None:
        for part in parts:
            work(-(-part.start // length), -(-part.stop // length))

    in_threads(of_thread, lines * length)
