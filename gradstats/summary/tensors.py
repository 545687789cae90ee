"""Converting gradients of many array types to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradstats.kernels.grid import GRIDS

RULE = "gradient must be a tensor, an array of numbers, or a list of those"


def as_tensor(data: Any) -> Tensor:
    """Convert a gradient to a detached tensor, without its absent elements.

    A tensor stays on its device and shares its memory, as does a numpy array that torch can read;
    torch reads neither a foreign byte order nor negative strides, and warns of read-only memory,
    so that such arrays are copied. Where elements are masked or None, the others come in order,
    `[n]`.

    Args:
        data: a tensor; an array of numpy, or of xarray, zarr, pandas, jax or whatever else has
            `__array__`; numbers in nested lists, which are float64; None, which is no element.

    Raises:
        TypeError: the elements are not float16, bfloat16, float32 or float64, or `data` is neither
            a tensor nor an array.

    Example:
        >>> as_tensor(np.ma.masked_greater([1.0, 9.0, 2.0], 5.0)).tolist()
        [1.0, 2.0]
    """
    tensor = data.detach() if isinstance(data, Tensor) else _of_array(_as_array(data))
    if tensor.dtype not in GRIDS:
        known = ", ".join(grid.name for grid in GRIDS.values())
        name = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"gradient must have a dtype of {known}, got {name}")
    if tensor.is_meta:
        raise TypeError(f"gradient must hold elements, got a meta tensor of {tuple(tensor.shape)}")
    return tensor.resolve_neg()


def _as_array(data: Any) -> NDArray[Any]:
    if isinstance(data, str | bytes):
        raise TypeError(f"{RULE}, got {data!r}")
    if isinstance(data, nn.Module):
        remedy = "pass [p.grad for p in model.parameters()]"
        raise TypeError(f"{RULE}, got {type(data).__name__}; {remedy}")
    if data is None:
        return np.zeros(0, np.float32)
    if isinstance(data, np.ma.MaskedArray):
        return np.asarray(data.compressed())
    if type(getattr(data, "dtype", None)).__module__.startswith("pandas"):  # nullable
        data = data.to_numpy(dtype=object, na_value=None)
    if isinstance(data, list | tuple | int | float) and not isinstance(data, bool):
        return _of_numbers(data)
    array = np.asarray(data)
    if array.dtype == object and not array.ndim:
        raise TypeError(f"{RULE}, got {type(data).__name__}")
    return _present(array) if array.dtype == object else array


def _of_numbers(data: Any) -> NDArray[Any]:
    """Numbers that have no dtype are float64; lists of unlike length come one after another."""
    try:
        array = np.asarray(data)
    except ValueError:
        return np.concatenate([_of_numbers(each).ravel() for each in data])
    if array.dtype == object:
        array = _present(array)
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def _present(array: NDArray[Any]) -> NDArray[Any]:
    """The elements that are not None, in a dtype of their own."""
    return np.array([each for each in array.ravel() if each is not None])


def _of_array(array: NDArray[Any]) -> Tensor:
    if array.dtype.name == "bfloat16":  # which numpy knows from ml_dtypes alone
        return _of_array(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        known = ", ".join(grid.name for grid in GRIDS.values())
        raise TypeError(f"gradient must have a dtype of {known}, got {array.dtype}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if odd or not array.flags.writeable:
        array = array.copy(order="K")
    return torch.from_numpy(array)
