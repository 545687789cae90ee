"""Distances of a reconstruction from its gradient; sums in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradstats import kernels

SAFE = (2.0**-450, 2.0**450)  # magnitudes whose sums of squares stay in float64


def relative_error(grad: Tensor, reconstruction: Tensor) -> float:
    """Compute ‖g - ĝ‖ / ‖g‖: 0 is exact, 1 is the error of sending nothing.

    For g = 0 it is 0 if ĝ = 0 and inf otherwise.

    Raises:
        TypeError: one of the two is no tensor.
        ValueError: they differ in their number of elements.

    Example:
        >>> import torch
        >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
        0.8
    """
    sums = _sums(grad, reconstruction)
    return _ratio(sums.lost, sums.grad)


def cosine(grad: Tensor, reconstruction: Tensor) -> float:
    """Compute ⟨g, ĝ⟩ / ‖g‖‖ĝ‖, in [-1, 1]; NaN if either is zero.

    Raises:
        TypeError: one of the two is no tensor.
        ValueError: they differ in their number of elements.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])) > 0.999999
        True
    """
    sums = _sums(grad, reconstruction)
    length = math.sqrt(sums.grad) * math.sqrt(sums.update)
    return sums.both / length if length else math.nan


def closeness(
    grad: Tensor,
    sent: Tensor,
    residual: Tensor | None,
    compensated: Tensor | None = None,
) -> dict[str, float]:
    r"""Compute the errors that a replay reports.

    .. math:: \text{error} = \|g - \hat g\| / \|g\|, \quad
              \text{error\_compensated} = \|v - \hat g\| / \|v\|, \quad
              \text{residual\_ratio} = \|e\| / \|g\|

    Args:
        grad: g, the gradient, `[n]`.
        sent: ĝ, the update: what was sent of v, `[n]`.
        residual: e, what the memory keeps for the next step, `[n]`; None without a memory of what
            was not sent.
        compensated: v, the compensated gradient, `[n]`: gradient + residual of the step before.
            Default: ĝ + e, which is v if the memory keeps all that was not sent; g without a
            residual.

    Returns:
        error, error_compensated (equal to error where v is g), residual_ratio (NaN without a
        residual, and for g = 0), and cosine, that of g and ĝ (NaN if either is zero).
    """
    sums = _sums(grad, sent, residual, compensated)
    lost = sums.lost if math.isfinite(sums.lost) else math.inf  # a sum overflowed
    error = _ratio(lost, sums.grad)
    length = math.sqrt(sums.grad) * math.sqrt(sums.update)
    held = {"error_compensated": error, "residual_ratio": math.nan}
    if residual is not None and sums.grad:
        held["residual_ratio"] = math.sqrt(sums.residual / sums.grad)
    if residual is not None or compensated is not None:
        held["error_compensated"] = _ratio(sums.missed, sums.compensated)
    return {"error": error, "cosine": sums.both / length if length else math.nan, **held}


def _sums(
    grad: Tensor, sent: Tensor, residual: Tensor | None = None, compensated: Tensor | None = None
) -> kernels.Products:
    """The products of the vectors; the gradient and the update stand in for those not given."""
    _check([each for each in (grad, sent, residual, compensated) if each is not None])
    held = sent if residual is None else residual
    if compensated is None:
        whole = None if residual is None else sent.double().reshape(-1) + residual.reshape(-1)
        compensated = grad if whole is None else whole
    return kernels.products(*_in_range(grad, sent, compensated, held))


def _in_range(*vectors: Tensor) -> list[Tensor]:
    """Flatten; convert to a dtype that holds all, in which no square leaves the range of float64.

    Squares of float32 never do. Vectors of float64 are divided by a power of two if theirs do.
    """
    flat = [vector.detach().reshape(-1).contiguous() for vector in vectors]
    if all(x.is_floating_point() and x.dtype.itemsize <= 4 for x in flat):
        return [x.float() for x in flat]
    flat = [x.double() for x in flat]
    largest = max((float(x.abs().max()) for x in flat if len(x)), default=0.0)
    if not SAFE[0] <= largest <= SAFE[1] and 0 < largest < math.inf:
        unit = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
        flat = [x / unit for x in flat]
    return flat


def _check(vectors: Sequence[Any]) -> None:
    """Check that all are tensors of one length."""
    for each in vectors:
        if not isinstance(each, Tensor):
            remedy = "; pass torch.as_tensor of it" if hasattr(each, "__len__") else ""
            rule = "gradient and reconstruction must be tensors"
            raise TypeError(f"{rule}, got {type(each).__name__}{remedy}")
    lengths = [each.numel() for each in vectors]
    if len(set(lengths)) > 1:
        rule = "gradient and reconstruction must have the same number of elements"
        raise ValueError(f"{rule}, got {' and '.join(map(str, lengths))}")


def _ratio(square: float, length_square: float) -> float:
    if length_square:
        return math.sqrt(square / length_square)
    return 0.0 if square == 0 else math.inf
