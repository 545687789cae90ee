"""The files that gradients are saved in, and what of each file is a gradient."""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradstats.runs.importing.entries import MOST_NAMED, chosen, kind_of
from gradstats.settings import SettingError
from gradstats.store.rows import Array

Named = dict[str, Array]

PICKLES = 4
BITS = "bfloat16 of numpy.save, bits without a dtype"
HINTS: Mapping[str, str] = {
    ".pkl": "loading a pickle runs code: save the arrays with numpy.savez or torch.save",
    ".pickle": "loading a pickle runs code: save the arrays with numpy.savez or torch.save",
    ".csv": "save the numbers with numpy.save",
    ".txt": "save the numbers with numpy.save",
    ".distcp": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch joins its shards",
    ".msgpack": "save the arrays with numpy.savez",
    ".mat": "save the arrays with numpy.savez",
}
# what is said of a file of which a part is missing
_DAMAGE = re.compile(r"central directory|not a ZIP|unexpected EOF|corrupted")
_TORCH = ("torch.save", (b"PK\x03\x04", b"\x80"))  # a zip file, or a pickle of before 1.6
STARTS: Mapping[str, tuple[str, tuple[bytes, ...]]] = {
    ".npy": ("numpy.save", (b"\x93NUMPY",)),
    ".npz": ("numpy.savez", (b"PK",)),
    ".safetensors": ("safetensors", (b"{",)),
    ".h5": ("HDF5", (b"\x89HDF",)),
    ".hdf5": ("HDF5", (b"\x89HDF",)),
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _TORCH),
}


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
        ValueError: it cannot be read, or it is not clear which entry holds the gradients.
        ImportError: its format needs a package that is missing.
    """
    try:
        raw = LOADERS[suffix_of(path)](path)
    except (ImportError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # every format has errors of its own
        raise ValueError(f"cannot read {path} as {path.suffix}: {_fact(path, error)}") from error
    try:
        return _sorted_out(*chosen(raw, key))
    except SettingError as error:
        raise SettingError(error.setting, f"{error.fact}: cannot import {path}") from error
    except ValueError as error:
        raise ValueError(f"cannot import {path}: {error}") from error


def _fact(path: Path, error: Exception) -> str:
    """Name the fault of a file: from its first bytes, else from its reader's error."""
    with path.open("rb") as file:
        start = file.read(512)
    if other := _by_start(path, start):
        return other
    text = str(error).partition("\n")[0] or type(error).__name__
    if _DAMAGE.search(text) or isinstance(error, EOFError | zipfile.BadZipFile) or _is_cut(path):
        return "it is damaged or not complete; copy or save it again"
    if "TorchScript" in text:
        return "it is a program of TorchScript; save its state_dict() instead"
    if "not in a subdirectory" in text:
        return "it is a zip file, and none of torch.save"
    if "allow_pickle" in text or "Weights only" in text:
        remedy = "save tensors alone, as torch.save({name: p.grad}) or numpy.savez do"
        return f"it holds objects that only running code can rebuild; {remedy}"
    return text


def _is_cut(path: Path) -> bool:
    """Does a pickle end before its end? A file of torch before 1.6 begins with four of them."""
    with path.open("rb") as file:
        for _ in range(PICKLES):
            if file.peek(1)[:1] != b"\x80":
                return False
            try:
                deque(pickletools.genops(file), maxlen=0)
            except ValueError:
                return True
    return False


def _by_start(path: Path, start: bytes) -> str:
    """Name what a file is by its first bytes; "" if they fit its suffix."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; git lfs pull fetches the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as of a download that failed; download it again"
    maker, starts = STARTS.get(suffix_of(path), ("", (b"",)))
    if start[8 * (maker == "safetensors") :].startswith(starts):  # after the header's length
        return ""
    return f"it is no file of {maker}: it begins with {start[:12]!r}"


def _load_npy(path: Path) -> Any:
    return {"gradient": _mapped(path)}


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        array = np.load(path, allow_pickle=False)
    return array


def _load_npz(path: Path) -> Any:
    # opened here, since numpy leaves a file that is no archive open
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        entries = {name: _entry(archive, name) for name in archive.files}
    arrays = {name: value for name, value in entries.items() if not isinstance(value, bytes)}
    if entries and not arrays:
        raise ValueError("it is a zip file, and none of numpy.savez")
    # savez makes arrays of numbers: those of Python are float64
    wide = {value.dtype for value in arrays.values() if value.ndim} == {np.dtype("float64")}
    numbers = {
        name: value.item()
        for name, value in arrays.items()
        if value.shape == () and value.dtype == "float64" and not wide
    }
    return {**entries, **numbers}


def _entry(archive: Any, name: str) -> Any:
    """One array of an archive; objects, which only running code can rebuild, are left out."""
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        return np.empty(0, object)


def _load_pt(path: Path) -> Any:
    with torch.serialization.safe_globals(_numpy_globals()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        return torch.load(path, map_location="cpu", weights_only=True)  # of before torch 1.6


def _numpy_globals() -> list[Any]:
    """What numpy's arrays and numbers in a file of torch.save are made with: no code of a user."""
    core = import_module("numpy._core.multiarray")
    functions = [(getattr(core, name), name) for name in ("_reconstruct", "scalar")]
    names = ("numpy._core.multiarray", "numpy.core.multiarray")  # of numpy 2 and before
    known: list[Any] = [(f, f"{module}.{name}") for f, name in functions for module in names]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*known, np.ndarray, np.dtype, *dtypes, (codecs.encode, "_codecs.encode")]


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


def _sorted_out(named: Mapping[str, Any], aside: Mapping[str, str]) -> Content:
    """Keep what is floating point, and name the rest."""
    arrays: Named = {}
    left_out = dict(aside)
    remarks = []
    for name, value in named.items():
        if not _is_floating(value):
            left_out[name] = (
                "bfloat16 of numpy.save, bits without a dtype"
                if _is_bits(value)
                else kind_of(value)
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
    if value.is_meta:
        fact = f"{name!r} is on the meta device, a shape {list(value.shape)} without elements"
        raise ValueError(f"{fact}; save it from the process that computes it")
    if hasattr(value, "full_tensor"):
        raise ValueError(f"{name!r} is one process's part of a DTensor; save .full_tensor()")
    return value.detach().to_dense() if value.layout != torch.strided else value.detach()
