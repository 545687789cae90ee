"""Which form of the kernels runs: plain torch, numba or triton."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

HAVE_NUMBA = importlib.util.find_spec("numba") is not None
HAVE_TRITON = importlib.util.find_spec("triton") is not None
FORMS = ("auto", "eager")
_form = ContextVar("form", default="auto")


@contextmanager
def use(form: str) -> Iterator[None]:
    """Run the block with the kernels in one form.

    Args:
        form: "eager", the plain torch that defines them, or "auto", the fastest for the device.

    Raises:
        ValueError: another form.

    Example:
        >>> import torch
        >>> from gradstats.kernels import largest
        >>> with use("eager"):
        ...     indices, values = largest(torch.tensor([1.0, -3.0, 2.0]), 2)
        >>> indices.tolist()
        [1, 2]
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    before = _form.set(form)
    try:
        yield
    finally:
        _form.reset(before)


def form() -> str:
    """The form in use: "auto" or "eager"."""
    return _form.get()


def in_numba(values: Tensor) -> bool:
    """Whether the kernels in numba are to be used for a tensor."""
    return HAVE_NUMBA and values.device.type == "cpu" and _form.get() == "auto"


def on_host(tensor: Tensor) -> bool:
    """Whether the host has a tensor's numbers without waiting for a device.

    Under `use("eager")` tensors on the CPU are treated as those of a device are.
    """
    return tensor.device.type == "cpu" and _form.get() == "auto"


def in_triton(values: Tensor) -> bool:
    """Whether the kernels in triton are to be used for a tensor."""
    return HAVE_TRITON and values.is_cuda and _form.get() == "auto"
