"""How close a reconstruction is to its gradient; sums in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_error(grad: Tensor, reconstruction: Tensor) -> float:
    """‖g - ĝ‖ / ‖g‖: 0 is exact, 1 is what sending nothing costs.

    For g = 0 it is 0 if ĝ = 0 and inf otherwise.

    Example:
        >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]))
        0.8
    """
    return _ratio(norm(grad.double() - reconstruction.double()), norm(grad))


def cosine(grad: Tensor, reconstruction: Tensor) -> float:
    """⟨g, ĝ⟩ / ‖g‖‖ĝ‖, in [-1, 1]; NaN if either is zero.

    Example:
        >>> cosine(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])) > 0.999999
        True
    """
    product = float(torch.dot(grad.double().reshape(-1), reconstruction.double().reshape(-1)))
    length = norm(grad) * norm(reconstruction)
    return product / length if length else math.nan


def norm(grad: Tensor) -> float:
    """‖g‖₂."""
    return float(torch.linalg.vector_norm(grad, dtype=torch.float64))


def _ratio(error: float, length: float) -> float:
    if length:
        return error / length
    return 0.0 if error == 0 else math.inf
