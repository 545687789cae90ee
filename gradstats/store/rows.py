"""Rows to be stored: packed from named tensors, and checked before any byte is written."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch

from gradstats.store.layout import COORDINATES, POINTS, UNKNOWN
from gradstats.store.parameters import Parameter, dtype_name, widths

Array = torch.Tensor | np.ndarray[Any, Any]
Flat = Mapping[str, torch.Tensor]
Order = tuple[int, int, int, int]
"""(segment, step, micro_step, point): strictly increasing down a stream."""


class Coordinates(TypedDict, total=False):
    """Facts about a row, by name: those of `COORDINATES` but the step."""

    micro_step: int
    segment: int
    point: str
    loss: float
    learning_rate: float
    grad_norm: float
    loss_scale: float
    unscaled: int
    skipped: int
    clip_norm: float
    clip_coefficient: float
    world_size: int
    step_seconds: float
    inner_steps: int


@dataclass(frozen=True)
class Row:
    """One row of a stream, in the layout of the store.

    Attributes:
        step: the optimizer step.
        flat: by dtype name, the 1-D CPU tensor of all (or all tracked) elements of that dtype;
            elements of a parameter without a gradient are zero.
        present: bool, one per parameter of the table: whether it had a gradient.
        coordinates: any of COORDINATES but the step.
        weights: as `flat`, the values of the parameters themselves.
        ragged: 1-D arrays of this row, by the name of the ragged array; a missing one is empty.
        late: functions that compute further coordinates, by name; each is called just before the
            row is written, so that memory is read once for both.
    """

    step: int
    flat: Flat
    present: np.ndarray[Any, np.dtype[np.bool_]]
    coordinates: Mapping[str, Any] = field(default_factory=dict)
    weights: Flat | None = None
    ragged: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    late: Mapping[str, Callable[[], float]] = field(default_factory=dict)


def as_tensor(name: str, value: Array) -> torch.Tensor:
    """Convert to a dense floating-point tensor of any device and stride; errors name `name`."""
    if isinstance(value, np.ndarray):
        dtype_name(value.dtype.name)
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"gradient of {name!r} must be a tensor or an array, got {type(value)!r}")
    if value.layout != torch.strided:
        fact = f"it is sparse ({value.layout}) of shape {tuple(value.shape)}"
        raise ValueError(f"cannot store the gradient of {name!r}: {fact}; pass .to_dense()")
    dtype_name(value.dtype)
    return value.detach()


def as_bits(values: torch.Tensor) -> np.ndarray[Any, Any]:
    """View the values of a CPU tensor as Zarr stores them (bfloat16 as uint16), without a copy."""
    bits = values.detach().view(torch.int16) if values.dtype == torch.bfloat16 else values.detach()
    return bits.numpy()


def as_values(stored: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    """Convert the array that Zarr stored for values of this dtype to a tensor."""
    if dtype == "bfloat16":
        bits = stored.astype(np.uint16, copy=False).view(np.int16)
        return torch.from_numpy(bits).view(torch.bfloat16)
    return torch.from_numpy(stored.astype(dtype, copy=False))


def as_sparse(
    indices: np.ndarray[Any, Any], values: np.ndarray[Any, Any], p: Parameter
) -> torch.Tensor:
    """Convert a stored sparse gradient to a coalesced tensor.

    Args:
        indices: one integer per value, flattened over the leading dimensions.
        values: a value per index, or a vector of the other dimensions, one after another.
        p: the parameter.
    """
    each = len(values) // max(1, len(indices))
    dims = next(n for n in range(1, len(p.shape) + 1) if math.prod(p.shape[n:]) <= max(1, each))
    places = torch.from_numpy(np.stack(np.unravel_index(indices, p.shape[:dims])))
    vectors = as_values(values, p.dtype).reshape(len(indices), *p.shape[dims:])
    sparse = torch.sparse_coo_tensor(places, vectors, p.shape, check_invariants=True)
    return sparse.coalesce()


def pack(
    named: Mapping[str, Array], parameters: Sequence[Parameter]
) -> tuple[dict[str, torch.Tensor], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Pack named tensors into flat ones.

    Returns:
        The flat tensors by dtype, zero for parameters that are not named, and a bool per
        parameter: whether it was named.

    Raises:
        ValueError: no tensor is named, a name is not in the table, or its shape or dtype differs
            from the table.
    """
    if not named:
        raise ValueError("gradients must name at least one parameter, got an empty mapping")
    places = {p.name: i for i, p in enumerate(parameters)}
    flat = {
        d: torch.zeros(n, dtype=getattr(torch, d), device="cpu")
        for d, n in widths(parameters).items()
    }
    present = np.zeros(len(parameters), dtype=bool)
    for name, value in named.items():
        if name not in places:
            fact = f"the store's table has {len(parameters)} parameters and not that one"
            raise ValueError(f"cannot store parameter {name!r}: {fact}; start another store")
        p, tensor = parameters[places[name]], as_tensor(name, value)
        if p.layout != "dense":
            fact = "the store keeps it sparse"
            raise ValueError(f"cannot store {name!r} as a tensor: {fact}; append a Row")
        if (tuple(tensor.shape), dtype_name(tensor.dtype)) != (p.shape, p.dtype):
            got = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
            raise ValueError(f"{name!r} must be {p.dtype} {list(p.shape)}, got {got}")
        flat[p.dtype][p.offset : p.offset + p.numel].view(p.shape).copy_(tensor)
        present[places[name]] = True
    return flat, present


def check_row(row: Row, row_widths: Mapping[str, int], parameters: int) -> None:
    """Check that a row has the arrays that the writer relies on.

    Raises:
        ValueError: a value does not fit the arrays of the stream; the error names the first.
    """
    if np.shape(row.present) != (parameters,) or np.asarray(row.present).dtype != np.bool_:
        got = f"{np.asarray(row.present).dtype} {list(np.shape(row.present))}"
        raise ValueError(f"present must be bool [{parameters}], got {got}")
    for flat in (row.flat, row.weights):
        if flat is not None:
            _check_flat(flat, row_widths)
    unknown = {*row.coordinates, *row.late} - (set(COORDINATES) - {"step"})
    if unknown:
        known = ", ".join(name for name in COORDINATES if name != "step")
        raise ValueError(f"coordinates must be among {known}, got {sorted(unknown)[0]!r}")
    if row.coordinates.get("point", "unknown") not in POINTS:
        rule = f"point must be one of {', '.join(POINTS)}"
        raise ValueError(f"{rule}, got {row.coordinates['point']!r}")


def _check_flat(flat: Flat, row_widths: Mapping[str, int]) -> None:
    if set(flat) != set(row_widths):
        raise ValueError(f"a row must have dtypes {sorted(row_widths)}, got {sorted(flat)}")
    for dtype, tensor in flat.items():
        got = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        if got != (dtype, (row_widths[dtype],)) or tensor.device.type != "cpu":
            rule = f"the flat {dtype} must be a CPU tensor {dtype} [{row_widths[dtype]}]"
            raise ValueError(f"{rule}, got {got[0]} {list(got[1])} on {tensor.device}")


def coordinate_values(row: Row, segment: int) -> dict[str, int | float]:
    """Return every coordinate of a row as the store holds it; unknown ones are NaN (or code 0).

    Args:
        row: the row.
        segment: its segment, if the row has none.
    """
    given = dict(row.coordinates)
    values: dict[str, int | float] = {
        "step": operator.index(row.step),
        "micro_step": operator.index(given.get("micro_step", 0)),
        "segment": operator.index(given.get("segment", segment)),
        "point": POINTS.index(given.get("point", "unknown")),
    }
    for name in set(COORDINATES) - set(values):
        value = given.get(name)
        if name in UNKNOWN:
            values[name] = UNKNOWN[name] if value is None else operator.index(value)
        else:
            values[name] = float("nan") if value is None else float(value)
    return values


def check_order(last: Order | None, new: Order) -> None:
    """Check that a row comes after the last one.

    Raises:
        ValueError: step, micro_step and point did not grow within the segment, or the segment
            fell.
    """
    if last is None or new > last:
        return
    if new[0] < last[0]:
        raise ValueError(f"segment must be at least {last[0]}, got {new[0]}")
    rule = f"step must grow within segment {last[0]}: the last is {last[1]} (micro {last[2]})"
    remedy = f"pass segment={last[0] + 1} for a run that restarted"
    raise ValueError(f"{rule}, got {new[1]} (micro {new[2]}); {remedy}")


def check_ids(dtype: str, ids: np.ndarray[Any, Any], row_widths: Mapping[str, int]) -> None:
    """Check the indices of tracked elements of one dtype.

    Raises:
        ValueError: the rows have no such dtype, or an index is out of range or order.
    """
    if dtype not in row_widths:
        raise ValueError(f"element_ids must be for {', '.join(row_widths)}, got {dtype!r}")
    ordered = ids.ndim == 1 and bool((np.diff(ids) > 0).all())
    if not ordered or (len(ids) and not 0 <= ids[0] <= ids[-1] < row_widths[dtype]):
        rule = f"element_ids of {dtype} must be sorted, distinct and in [0, {row_widths[dtype]})"
        raise ValueError(f"{rule}, got {ids!r}")
