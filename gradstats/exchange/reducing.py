"""What goes into an all-reduce and what comes out: shares of a mean, and packed integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from gradstats.compressors import AllReduce
from gradstats.kernels import coding
from gradstats.kernels.forms import in_numba, on_host
from gradstats.kernels.moving import are_finite, divide, divide_in_16_bits
from gradstats.kernels.ranges import saturated

WORD = 8  # bytes of an integer
MOST_DIGITS = 1 << 16  # levels of what is packed
INT32 = 1 << 31


def outgoing(request: AllReduce, workers: int) -> Tensor:
    """The tensor that one worker puts into an all-reduce; never the tensor of the request itself.

    A mean is divided before the sum, as DistributedDataParallel does, so that no sum leaves the
    range of which every operand and the mean are. Integers to be added become digits of a base
    that holds their sums.
    """
    tensor, levels = request.tensor, request.levels
    if not levels:
        return share_of(tensor, request.op, workers)
    if request.op == "max":  # of packed digits the first would decide for all in its word
        return tensor.to(_integers(levels), copy=True)
    base = _base(levels, workers)
    symbols = tensor.reshape(-1)
    if base > MOST_DIGITS:
        return symbols.to(torch.int32 if base <= INT32 else torch.int64, copy=True)
    packed = coding.pack(symbols, base, trusted=not on_host(symbols))
    return torch.nn.functional.pad(packed, (0, -len(packed) % WORD)).view(torch.int64)


def incoming(total: Tensor, request: AllReduce, workers: int) -> Tensor:
    """The result of an all-reduce, from the sum (or maximum) of what went out."""
    if not request.levels:
        return total
    if request.op == "max":
        return total.to(torch.int64)
    base, numel = _base(request.levels, workers), request.tensor.numel()
    if base <= MOST_DIGITS:
        packed = total.view(torch.uint8)[: coding.packed_nbytes(numel, base)]
        total = coding.unpack(packed, numel, base, trusted=True)
    total = total.view(request.tensor.shape)
    return total.float() / workers if request.op == "mean" else total.to(torch.int64)


def share_of(tensor: Tensor, op: str, workers: int) -> Tensor:
    """What one worker adds to a sum or a mean; never the tensor itself."""
    return _share(tensor, workers) if op == "mean" else tensor.clone()


def fill_share(out: Tensor, values: Tensor, workers: int) -> Tensor:
    """Put what one worker adds to a mean into `out`, in whose dtype the mean is taken.

    Args:
        out: shaped as the values, in their dtype or a 16-bit one; may be the values themselves.
        values: floating point.
        workers: number of workers.

    Returns:
        Whether all values are finite, a bool on their device, `[]`.
    """
    if out.dtype.itemsize > 2:
        return divide(out, values, workers)
    if in_numba(values) and values.dtype == torch.float32 and values.dim() == 1:
        largest = divide_in_16_bits(out, values, workers)
        if largest <= _most(out.dtype, workers):
            return torch.tensor(True)
    finite = are_finite([values])
    out.copy_(_share(saturated(values, out.dtype), workers))
    return finite


def check_parts(parts: Sequence[object], workers: int) -> None:
    """Raise ValueError unless there is one part for each worker."""
    if len(parts) != workers:
        rule = f"a collective must have one part for each of {workers} workers"
        raise ValueError(
            f"{rule}, got {len(parts)}: give exchange() an Rng with workers={workers}"
        )


def message_nbytes(longest: int) -> int:
    """Length of the room of every message of an all-to-all: whole words."""
    return -(-longest // WORD) * WORD


def _share(tensor: Tensor, workers: int) -> Tensor:
    """x/n; in 16 bits never so far from 0 that the rounded sum of n of them is not finite."""
    share = tensor / workers
    if share.element_size() > 2 or workers == 1:
        return share
    most = _largest_share(share.dtype, workers)
    return torch.where(share.isinf(), share, share.clamp(-most, most))


@cache
def _largest_share(dtype: torch.dtype, workers: int) -> float:
    """The largest number of which n have a finite sum, one by one and in pairs of pairs.

    Example:
        >>> _largest_share(torch.float16, 2), _largest_share(torch.float16, 3)  # of at most 65,504
        (32752.0, 21824.0)
    """
    share = torch.tensor(torch.finfo(dtype).max / workers).to(dtype).reshape(1)
    while True:
        in_turn, pairs = torch.zeros_like(share), [share] * workers
        for _ in range(workers):
            in_turn = in_turn + share
        while len(pairs) > 1:
            pairs = [sum(pairs[i + 1 : i + 2], pairs[i]) for i in range(0, len(pairs), 2)]
        if (in_turn + pairs[0] * 0).isfinite():
            return float(share)
        share = (share.view(torch.int16) - 1).view(dtype)  # the next one down


@cache
def _most(dtype: torch.dtype, workers: int) -> float:
    """The largest number whose n-th part is a share as it is."""
    return min(workers * _largest_share(dtype, workers), torch.finfo(dtype).max)


def _integers(levels: int) -> torch.dtype:
    """The smallest integers that all backends compare, from 0 to `levels` - 1."""
    if levels <= 1 << 8:
        return torch.uint8
    return torch.int32 if levels <= INT32 else torch.int64


def _base(levels: int, workers: int) -> int:
    """At least n (levels - 1) + 1, such that no digit lies across two words."""
    base = workers * (levels - 1) + 1
    while base <= MOST_DIGITS and not _within_words(base):
        base = (1 << (base - 1).bit_length()) + 1
    return base


def _within_words(base: int) -> bool:
    bits = (base - 1).bit_length()
    return coding.bits_per_symbol(base) != bits or 8 * WORD % bits == 0
