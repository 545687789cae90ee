"""Tables of parameters: the columns of a store, in the order of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gradstats.store.layout import DTYPES, Document


@dataclass(frozen=True)
class Parameter:
    """One line of the parameter table: where its elements are in the flat array of its dtype.

    `offset` and `numel` count elements; parameters of one dtype follow each other in table order.
    `aliases` are further names of the same tensor (tied weights). A parameter of layout "sparse"
    has sparse gradients, which take no part in the flat array; its `numel` is the dense size.

    In the table of a worker that holds a shard, `shape` and `numel` are the shard's: the part of
    `global_shape` that begins at `shard_offset`, cut as `placement` describes.

    `matrices` is the number of matrices that low-rank training makes of it (groups of a
    convolution, gates, projections); 0 if its layer stays as it is, None if that is not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    numel: int
    module_type: str = ""
    aliases: tuple[str, ...] = ()
    layout: str = "dense"
    placement: str = ""
    global_shape: tuple[int, ...] = ()
    shard_offset: tuple[int, ...] = ()
    matrices: int | None = field(default=None, compare=False)


def dtype_name(dtype: object) -> str:
    """Return the store's name of a dtype of torch or numpy, or given as text: `"float32"`.

    Raises:
        ValueError: the store has no arrays of this dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        rule = f"dtype must be one of {', '.join(DTYPES)}, got {name!r}"
        raise ValueError(f"{rule}; convert it first, for instance to float32")
    return name


def parameter_table(
    named: Iterable[tuple[str, Sequence[int], object]],
    *,
    module_types: Mapping[str, str] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    sparse: Iterable[str] = (),
    matrices: Mapping[str, int] | None = None,
) -> tuple[Parameter, ...]:
    """Lay parameters out one after another, each in the flat array of its dtype.

    Args:
        named: (name, shape, dtype) in the order of the table; dtypes may be torch's.
        module_types: the class name of the module that owns a parameter, by parameter name.
        aliases: further names of a tied parameter, by the name it has in `named`.
        sparse: names of the parameters whose gradients are sparse.
        matrices: by parameter name, the number of matrices that low-rank training makes of it.

    Raises:
        ValueError: no parameters, a repeated name, or a dtype that is not floating point.

    Example:
        >>> [p.offset for p in parameter_table([("w", (2, 3), "float32"), ("b", (3,), "float32")])]
        [0, 6]
    """
    table: dict[str, Parameter] = {}
    ends = dict.fromkeys(DTYPES, 0)
    without_place = frozenset(sparse)
    for name, shape, dtype in named:
        if name in table:
            raise ValueError(f"parameter names must differ, got {name!r} twice")
        key, dims = dtype_name(dtype), tuple(int(n) for n in shape)
        kind, other = (module_types or {}).get(name, ""), tuple((aliases or {}).get(name, ()))
        how = "sparse" if name in without_place else "dense"
        place = Parameter(name, dims, key, ends[key], math.prod(dims), kind, other, how)
        table[name] = replace(place, matrices=(matrices or {}).get(name))
        ends[key] += table[name].numel if how == "dense" else 0
    if not table:
        raise ValueError("parameters must name at least one tensor, got none")
    return tuple(table.values())


def widths(parameters: Iterable[Parameter]) -> dict[str, int]:
    """Count the elements of a row by dtype, in order of first appearance."""
    total: dict[str, int] = {}
    for p in parameters:
        total[p.dtype] = total.get(p.dtype, 0) + (p.numel if p.layout == "dense" else 0)
    return total


def tracked(
    parameters: Iterable[Parameter], element_ids: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[Parameter, ...]:
    """Lay out the tracked elements of parameters: offset and numel count those alone.

    Args:
        parameters: the table of whole gradients.
        element_ids: by dtype, the sorted indices of the tracked elements in its flat array.
    """
    none = np.zeros(0, np.int64)

    def part(p: Parameter) -> Parameter:
        if p.layout != "dense":
            return replace(p, numel=0)
        first, stop = np.searchsorted(
            element_ids.get(p.dtype, none), [p.offset, p.offset + p.numel]
        )
        return replace(p, offset=int(first), numel=int(stop - first))

    return tuple(map(part, parameters))


def table_difference(stored: Sequence[Parameter], given: Sequence[Parameter]) -> str | None:
    """Name the first difference between two tables; None if they agree."""
    for old, new in zip(stored, given, strict=False):
        if old != new:
            return f"parameter {old.name!r} is {_describe(old)} there and {_describe(new)} here"
    if len(stored) == len(given):
        return None
    longer, place = (stored, "there") if len(stored) > len(given) else (given, "here")
    return f"parameter {longer[min(len(stored), len(given))].name!r} is only {place}"


def _describe(p: Parameter) -> str:
    extras = [p.module_type, *(f"alias {a}" for a in p.aliases)]
    shard = f"{p.placement} from {list(p.shard_offset)}" if p.placement else ""
    how = p.layout if p.layout != "dense" else ""
    return " ".join([p.name, p.dtype, str(list(p.shape)), *filter(None, [*extras, how, shard])])


def table_to_json(parameters: Iterable[Parameter]) -> list[Document]:
    """Convert the table to JSON, as the root attributes hold it."""
    entries = [asdict(p) for p in parameters]
    return [{k: v for k, v in e.items() if k != "matrices" or v is not None} for e in entries]


def table_from_json(entries: Iterable[Document]) -> tuple[Parameter, ...]:
    """Read the table of the root attributes; fields of later writers are ignored."""
    return tuple(
        Parameter(
            name=e["name"],
            shape=tuple(e["shape"]),
            dtype=e["dtype"],
            offset=e["offset"],
            numel=e["numel"],
            module_type=e.get("module_type", ""),
            aliases=tuple(e.get("aliases", ())),
            layout=e.get("layout", "dense"),
            placement=e.get("placement", ""),
            global_shape=tuple(e.get("global_shape", ())),
            shard_offset=tuple(e.get("shard_offset", ())),
            matrices=e.get("matrices"),
        )
        for e in entries
    )
