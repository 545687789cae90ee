"""Making Summaries of one gradient, or of many at once, in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradstats import kernels
from gradstats.kernels.grid import GRIDS
from gradstats.summary.adding import narrow
from gradstats.summary.summary import Summary
from gradstats.summary.sums import Sums, is_safe
from gradstats.summary.tensors import as_tensor

BATCH = 64  # segments whose logarithms are taken at once, so that they stay in the cache
FEW = 1024  # elements, up to which ln|g| is summed one by one


def summarize(data: Any, *, fraction: float = 1.0) -> Summary:
    """Summarise a gradient in one pass at memory speed.

    Args:
        data: a gradient of any shape, stride and device, float16, bfloat16, float32 or float64, as
            a tensor or as anything that numpy takes for an array: of either byte order, read-only,
            of xarray, zarr, pandas or jax, or nested lists of numbers. Masked elements and None
            are absent; sparse tensors count their absent elements as zeros. A Summary is returned
            as it is. A list or dict of gradients, such as `[p.grad for p in model.parameters()]`,
            is summarised as one.
        fraction: the share of the gradient's elements that `data` is a random sample of, in
            (0, 1].

    Returns:
        The Summary; for None, the Summary of no elements.

    Raises:
        TypeError: the elements are not floating-point numbers.
        ValueError: a list of gradients whose dtypes differ, or a fraction outside (0, 1].

    Example:
        >>> summary = summarize(torch.tensor([0.0, 1.0, -3.0, float("nan")]))
        >>> summary.n, summary.zeros, summary.nan, summary.max_abs, summary.total
        (4, 1, 1, 3.0, -2.0)
    """
    _check_fraction(fraction)
    if isinstance(data, Summary):
        return data
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, Tensor) and data.is_nested:
        data = list(data.unbind())
    if _is_list_of_gradients(data):
        return sum((summarize(part, fraction=fraction) for part in data), summarize(None))
    grad = as_tensor(data)
    numel = grad.numel()
    if grad.layout is not torch.strided:
        grad = grad.to_sparse_coo().coalesce().values()  # type: ignore[no-untyped-call]
    present = _in_memory_order(grad)
    tally = kernels.count(present)
    absent = numel - len(present)
    tally = tally._replace(positive_zeros=tally.positive_zeros + absent)
    (total_log,) = _log_sums(present, [0, len(present)])
    summary = of_tally(tally, GRIDS[grad.dtype].name, numel, fraction, total_log)
    return _with_safe_sums(summary, present)


def summarize_segments(
    flat: Tensor, offsets: Sequence[int] | NDArray[np.integer], *, fraction: float = 1.0
) -> list[Summary]:
    """Summarise consecutive segments of one flat gradient, such as the parameters of a model.

    Every element is visited once. Each Summary equals that of `summarize` on the segment, bit for
    bit.

    Args:
        flat: gradient as one vector, `[n]`, of float16, bfloat16, float32 or float64, on any
            device.
        offsets: positions at which segments start, and n at the end: `[segments + 1]` whole
            numbers from 0 to n, each at least as large as the one before. Segment i is
            `flat[offsets[i] : offsets[i + 1]]`, which may be empty.
        fraction: the share of the gradient's elements that `flat` is a random sample of, in
            (0, 1]; 1 (default): `flat` is the whole gradient.

    Returns:
        The Summaries, one per segment, in order.

    Raises:
        TypeError: the elements are not floating-point numbers.
        ValueError: `flat` does not have one dimension, `offsets` do not rise from 0 to n, or a
            fraction outside (0, 1].

    Example:
        >>> parts = summarize_segments(torch.tensor([1.0, 0.0, -2.0]), [0, 2, 3])
        >>> [part.n for part in parts], [part.max_abs for part in parts]
        ([2, 1], [1.0, 2.0])
    """
    _check_fraction(fraction)
    grad = as_tensor(flat)
    if grad.dim() != 1:
        raise ValueError(f"flat must have one dimension, got shape {tuple(grad.shape)}")
    ends = np.array([int(offset) for offset in offsets], np.int64)
    sizes = np.diff(ends)
    if not len(ends) or (sizes < 0).any() or (ends[0], ends[-1]) != (0, grad.numel()):
        every = ends.tolist()
        shown = f"{every[:3]} … {every[-1:]}" if len(every) > 4 else every
        raise ValueError(f"offsets must rise from 0 to {grad.numel()}, got {shown}")
    tallies = kernels.count_segments(grad.contiguous(), ends)
    name = GRIDS[grad.dtype].name
    segments = zip(tallies, pairwise(ends.tolist()), _log_sums(grad, ends), strict=True)
    return [
        _with_safe_sums(of_tally(tally, name, end - start, fraction, log), grad[start:end])
        for tally, (start, end), log in segments
    ]


def _check_fraction(fraction: Any) -> None:
    if not isinstance(fraction, Real) or not 0 < float(fraction) <= 1:
        rule = "must lie in (0, 1], the share of the gradient that is in the data"
        raise ValueError(f"fraction {rule}, got {fraction!r}")


def _is_list_of_gradients(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(hasattr(part, "dtype") for part in data)


def _with_safe_sums(summary: Summary, present: Tensor) -> Summary:
    """With sums over `power` where those of the elements leave the range of squares."""
    if is_safe(summary.max_abs):
        return summary
    tally = kernels.count(present * (1 / summary.power))
    return replace(summary, sums=Sums(summary.power, tally.total, tally.total_abs, tally.total_sq))


def _log_sums(flat: Tensor, ends: Sequence[int] | NDArray[np.int64]) -> list[float | None]:
    """Sum of ln|g| over each segment of at most FEW elements; None for others."""
    starts, stops = np.asarray(ends)[:-1], np.asarray(ends)[1:]
    few = np.flatnonzero(stops - starts <= FEW)
    log_sums: list[float | None] = [None] * len(starts)
    for first in range(0, len(few), BATCH):
        some = few[first : first + BATCH]
        spans = zip(starts[some].tolist(), stops[some].tolist(), strict=True)
        magnitudes = torch.cat([flat[start:stop] for start, stop in spans]).double().abs()
        logs = torch.where((magnitudes > 0) & (magnitudes < math.inf), magnitudes, 1.0).log()
        lengths = stops[some] - starts[some]
        sums = np.bincount(np.repeat(np.arange(len(some)), lengths), logs.cpu().numpy(), len(some))
        for i, total in zip(some.tolist(), sums.tolist(), strict=True):
            log_sums[i] = total
    return log_sums


def of_tally(
    tally: kernels.Tally,
    dtype: str,
    numel: int,
    fraction: float = 1.0,
    total_log: float | None = None,
) -> Summary:
    """What was counted of `numel` elements, as a Summary."""
    return Summary(
        dtype=dtype,
        bins=narrow(tally.bins),
        positive=narrow(tally.positive, numel),
        negative=narrow(tally.negative, numel),
        n=numel,
        zeros=tally.positive_zeros + tally.negative_zeros,
        nan=tally.nan,
        positive_inf=tally.positive_inf,
        negative_inf=tally.negative_inf,
        total=tally.total,
        total_abs=tally.total_abs,
        total_sq=tally.total_sq,
        max_abs=tally.max_abs,
        fraction=fraction,
        total_log=total_log,
    )


def _in_memory_order(grad: Tensor) -> Tensor:
    """The elements one after another, copied only where they have gaps or repeat."""
    order = sorted(range(grad.dim()), key=lambda dim: grad.stride(dim), reverse=True)
    return grad.permute(order).reshape(-1).contiguous()
