"""The files that gradients are saved in, and what of each file is a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradstats.store.rows import Array

Named = dict[str, Array]

ALL = "*"  # of --key: everything in the file
GRADIENTS = frozenset({"grads", "gradients", "grad", "gradient"})
# entries of a checkpoint that hold what is meant: their own name is no part of a parameter's
WRAPPERS = GRADIENTS.union(
    "state_dict model_state model_state_dict model module".split(),
    "params parameters net network weights".split(),
)
# entries that hold tensors and no gradients
ASIDE = frozenset(
    "optimizer optimizers optimizer_state optimizer_state_dict optimizer_states opt_state optim "
    "lr_scheduler lr_schedulers scheduler scaler rng_state rng_states callbacks loops".split()
)
HINTS: Mapping[str, str] = {
    ".pkl": "loading a pickle runs code: save the arrays with numpy.savez or torch.save",
    ".pickle": "loading a pickle runs code: save the arrays with numpy.savez or torch.save",
    ".csv": "save the numbers with numpy.save",
    ".txt": "save the numbers with numpy.save",
    ".distcp": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch joins its shards",
    ".msgpack": "save the arrays with numpy.savez",
    ".mat": "save the arrays with numpy.savez",
}
MOST_NAMED = 8


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        arrays: floating-point arrays by name.
        left_out: what else there is, by name: what it is.
        remarks: what was done to get the arrays.
    """

    arrays: Named
    left_out: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """The suffix of a file, in small letters."""
    return path.suffix.lower()


def suffix_rule(path: Path) -> str:
    """What to do with a file that nothing reads."""
    hint = HINTS.get(suffix_of(path), "")
    rule = f"files must end in {', '.join(LOADERS)}, got {str(path)!r}"
    return f"{rule}; {hint}" if hint else rule


def load(path: Path, key: str = "") -> Content:
    """Read a file; where its format allows that, arrays are read from disk when they are used.

    Args:
        path: the file.
        key: the entry that holds the gradients, such as "state_dict"; "*" takes all entries; ""
            takes the only one that may.

    Raises:
        ValueError: it cannot be read, or does not say which entry holds the gradients.
        ImportError: its format needs a package that is missing.
    """
    try:
        raw = LOADERS[suffix_of(path)](path)
    except (ImportError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # every format has errors of its own
        raise ValueError(f"cannot read {path} as {path.suffix}: {_fact(path, error)}") from error
    try:
        return _sorted_out(*_chosen(raw, key))
    except ValueError as error:
        raise ValueError(f"cannot import {path}: {error}") from error


def _fact(path: Path, error: Exception) -> str:
    if not path.stat().st_size:
        return "it is empty"
    text = str(error).partition("\n")[0] or type(error).__name__
    if "allow_pickle" in text or "weights_only" in text.lower() or "Weights only" in text:
        remedy = "save tensors alone, as torch.save({name: p.grad}) or numpy.savez do"
        return f"it holds objects that only running code can rebuild; {remedy}"
    return text


def _load_npy(path: Path) -> Any:
    return {"gradient": _mapped(path)}


def _mapped(path: Path) -> Array:
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        found = np.load(path, allow_pickle=False)
    return found


def _load_npz(path: Path) -> Any:
    # opened here, since numpy leaves a file that is no archive open
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        found = dict(archive.items())
    # savez makes arrays of numbers: those of Python are float64
    wide = {value.dtype for value in found.values() if value.ndim} == {np.dtype("float64")}
    return {
        name: value.item()
        if value.shape == () and value.dtype == "float64" and not wide
        else value
        for name, value in found.items()
    }


def _load_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # of before torch 1.6


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        remedy = "pip install 'gradstats[safetensors]'"
        raise ImportError(f"cannot read {path}: safetensors is missing; {remedy}") from error
    return dict(load_file(path))


def _load_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        remedy = "pip install 'gradstats[h5]'"
        raise ImportError(f"cannot read {path}: h5py is missing; {remedy}") from error
    with h5py.File(path, "r") as file:
        return _group(file)


def _group(group: Any) -> dict[str, Any]:
    """The arrays of an HDF5 group; those of groups inside it in dicts of their own."""
    return {
        name: _group(item) if isinstance(item, Mapping) else item[()]
        for name, item in group.items()
    }


LOADERS: Mapping[str, Callable[[Path], Any]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".pt": _load_pt,
    ".pth": _load_pt,
    ".bin": _load_pt,
    ".ckpt": _load_pt,
    ".safetensors": _load_safetensors,
    ".h5": _load_hdf5,
    ".hdf5": _load_hdf5,
}


def _chosen(raw: Any, key: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What of a file to look at, by name, and what is left aside: what it is."""
    if isinstance(raw, (torch.Tensor, np.ndarray)):
        return {"gradient": raw}, {}
    if not _holds_arrays(raw):
        raise ValueError(f"a file must hold a tensor or a dict of tensors, got {_kind(raw)}")
    entries = _entries(raw)
    if key == ALL:
        return dict(_flattened(raw)), {}
    if key:
        return _under(entries, key), {}
    inner = {name: value for name, value in entries.items() if _is_branch(value)}
    aside = {name: "no gradients" for name in inner if name.lower() in ASIDE}
    branches = [name for name in inner if name not in aside]
    direct = {name: value for name, value in entries.items() if name not in inner}
    own = any(isinstance(value, (torch.Tensor, np.ndarray)) for value in direct.values())
    named = [name for name in branches if name.lower() in GRADIENTS]
    if own and not branches:
        return direct, aside
    if len(named) == 1 or (len(branches) == 1 and not own):
        (name,) = named or branches
        others = {other: "not chosen" for other in branches if other != name}
        rest = {other: _kind(value) for other, value in direct.items()}
        return _under_one(name, inner[name]), {**aside, **others, **rest}
    several = ", ".join(repr(name) for name in [*branches, *direct][:MOST_NAMED])
    remedy = "choose one with --key NAME, or all with --key '*'"
    raise ValueError(f"it does not say which entry holds the gradients: {several}; {remedy}")


def _under_one(name: str, value: Any) -> dict[str, Any]:
    """The arrays of an entry; the name of a wrapper is no part of theirs."""
    return dict(_flattened(value, "" if name.lower() in WRAPPERS else f"{name}."))


def _under(entries: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arrays of the entry that is asked for, or of one inside it: "state.model"."""
    value: Any = entries
    for name in [key] if key in entries else key.split("."):
        inner = _entries(value)
        if name not in inner:
            there = ", ".join(map(repr, list(inner)[:MOST_NAMED])) or "none"
            raise ValueError(f"key must be an entry of it, one of {there}, got {key!r}")
        value = inner[name]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return {key: value}
    return dict(_flattened(value))


def _entries(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name): each for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(place): each for place, each in enumerate(value)}
    return {}


def _flattened(value: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in _entries(value).items():
        if _is_branch(each):
            yield from _flattened(each, f"{before}{name}.")
        else:
            yield f"{before}{name}", each


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return any(map(_holds_arrays, _entries(value).values()))
    return isinstance(value, (torch.Tensor, np.ndarray))


def _is_branch(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and _holds_arrays(value)


def _kind(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return str(value.dtype).removeprefix("torch.")
    return type(value).__name__


def _sorted_out(named: Mapping[str, Any], aside: Mapping[str, str]) -> Content:
    """Keep what is floating point, and name the rest."""
    arrays: Named = {}
    left_out = dict(aside)
    remarks = []
    for name, value in named.items():
        if not _is_floating(value):
            left_out[name] = (
                "bfloat16 of numpy.save, bits without a dtype" if _is_bits(value) else _kind(value)
            )
            continue
        if isinstance(value, torch.Tensor) and value.layout != torch.strided:
            remarks.append(f"sparse gradients are stored dense: {name}")
        arrays[name] = _dense(name, value)
    if not any(math.prod(array.shape) for array in arrays.values()):
        some = ", ".join(
            f"{kind!r} in {name}" for name, kind in list(left_out.items())[:MOST_NAMED]
        )
        raise ValueError(f"it must hold floating-point elements, got {some or 'none'}")
    return Content(arrays, left_out, tuple(remarks))


def _is_floating(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _is_bits(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.dtype("V2")


def _dense(name: str, value: Array) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "full_tensor"):
        raise ValueError(f"{name!r} is one process's part of a DTensor; save .full_tensor()")
    return value.detach().to_dense() if value.layout != torch.strided else value.detach()
