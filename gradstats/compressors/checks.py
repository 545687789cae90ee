"""Checks of a compressor's settings, of the gradient it gets, and of what it sends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gradstats.payloads.base import Payload


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless the setting is a whole number from `least`, at most `most`.

    Example:
        >>> check_whole("bits", 2.5, 1, 8)
        Traceback (most recent call last):
        ...
        ValueError: bits must be a whole number from 1 to 8, got 2.5
    """
    if isinstance(value, int) and value >= least and (most is None or value <= most):
        return
    limit = "" if most is None else f" to {most}"
    raise ValueError(f"{name} must be a whole number from {least}{limit}, got {value!r}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ValueError unless the setting is one of the choices.

    Example:
        >>> check_choice("norm", "l1", ("l2", "max"))
        Traceback (most recent call last):
        ...
        ValueError: norm must be one of l2, max, got 'l1'
    """
    allowed = list(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_gradient(grad: Any) -> None:
    """Raise TypeError unless a gradient is a dense tensor of floating-point numbers.

    Example:
        >>> check_gradient([1.0, 2.0])
        Traceback (most recent call last):
        ...
        TypeError: grad must be a tensor, got list; pass torch.as_tensor of it
    """
    if not isinstance(grad, Tensor):
        raise TypeError(f"grad must be a tensor, got {type(grad).__name__}; {ARRAY}")
    if not grad.is_floating_point():
        raise TypeError(f"grad must hold floating-point numbers, got {grad.dtype}")
    if grad.layout is not torch.strided:
        layout = str(grad.layout).removeprefix("torch.")
        raise TypeError(f"grad must be dense, got {layout}; pass grad.to_dense()")


def write_count(grad: Tensor) -> int:
    """How often torch has written to a tensor or a view of it; 0 where it does not count."""
    return 0 if grad.is_inference() else grad._version


ARRAY = "pass torch.as_tensor of it"


def check_sent(payload: Any, grad: Tensor, name: str) -> None:
    """Raise TypeError or ValueError unless what a compressor sends stands for its gradient.

    Args:
        payload: what its `message` or `encode` returned.
        grad: the gradient that it was given.
        name: of the compressor.
    """
    if not isinstance(payload, Payload):
        rule = f"{name} must return a Payload, such as gradstats.payloads.Dense"
        raise TypeError(f"{rule}, got {type(payload).__name__}")
    if payload.numel != grad.numel():
        rule = f"{name} must return a payload of {grad.numel()} elements, as many as the gradient"
        raise ValueError(f"{rule}, got {payload.numel}")
