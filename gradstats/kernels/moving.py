"""Copies, divisions and casts that look for NaN and inf on their way, in one pass over memory.

The plain torch here defines what they do; on the host `moving_cpu` does it in numba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradstats.kernels.forms import in_numba
from gradstats.kernels.ranges import left

WIDE = (torch.float32, torch.float64)


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return whether all elements are finite, a bool on their device, `[]`; each is read once."""
    tensors = [tensor for tensor in tensors if tensor.numel()]
    if not tensors:
        return torch.tensor(True)
    if all(in_numba(each) and each.dtype in WIDE and each.is_contiguous() for each in tensors):
        from gradstats.kernels import moving_cpu

        return torch.tensor(all(moving_cpu.is_finite(each.view(-1)) for each in tensors))
    norms = torch._foreach_norm(tensors, math.inf)  # as torch's own clipping does
    return torch.stack([norm.to(norms[0].dtype) for norm in norms]).isfinite().all()


def divide(out: Tensor, values: Tensor, divisor: float = 1.0) -> Tensor:
    """Put values / divisor into `out`.

    Args:
        out: as the values, of the same dtype; may be the values themselves.
        values: floating point, of any shape.
        divisor: not 0.

    Returns:
        Whether all values are finite, a bool on their device, `[]`.
    """
    contiguous = values.is_contiguous() and out.is_contiguous()
    if in_numba(values) and values.dtype in WIDE and contiguous:
        from gradstats.kernels import moving_cpu

        return torch.tensor(moving_cpu.divide(out.view(-1), values.view(-1), divisor))
    finite = are_finite([values])
    if divisor == 1:
        out.copy_(values)
    else:
        torch.div(values, divisor, out=out)
    return finite


def divide_in_16_bits(out: Tensor, values: Tensor, divisor: int) -> float:
    """Round values to the dtype of `out` and divide them there, on the host.

    As `out.copy_(values).div_(divisor)`, if no value is beyond the range of that dtype.

    Args:
        out: float16 or bfloat16, `[n]`, contiguous.
        values: float32, `[n]`, contiguous.
        divisor: a whole number from 1.

    Returns:
        The largest magnitude of the values; NaN if there is one.
    """
    from gradstats.kernels import moving_cpu

    return moving_cpu.divide_in_16_bits(out, values, divisor)


def subtract_sent(residual: Tensor, sent: Tensor) -> None:
    """Subtract what was sent from a residual, `[n]`; where it is not finite 0 is left."""
    alike = residual.dtype == sent.dtype and residual.dtype in WIDE
    if alike and in_numba(residual) and residual.is_contiguous() and sent.is_contiguous():
        from gradstats.kernels import moving_cpu

        moving_cpu.subtract_sent(residual, sent)
    else:
        residual.copy_(left(residual, sent))


def clear_at(vector: Tensor, places: Tensor) -> None:
    """Put 0 at some places of a vector: int64, in range."""
    if in_numba(vector) and vector.dtype in WIDE and vector.is_contiguous():
        from gradstats.kernels import moving_cpu

        moving_cpu.clear_at(vector, places)
    else:
        vector.index_fill_(0, places, 0)


def add_at(vector: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """Add values · weight at some places of a vector, none of them twice: int64, in range."""
    if in_numba(vector) and vector.dtype in WIDE and vector.is_contiguous():
        from gradstats.kernels import moving_cpu

        moving_cpu.add_at(vector, places, values, weight)
    else:
        vector.index_add_(0, places, values, alpha=weight)
