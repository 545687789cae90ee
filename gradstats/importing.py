"""Gradients that someone saved already: one file a step, into a store."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from gradstats.store import GradientStore
from gradstats.store.rows import Array

Named = dict[str, Array]


def import_gradients(
    files: Sequence[Path],
    out: str | Path,
    *,
    workers: int = 1,
    if_exists: str = "error",
    progress: Callable[[int, int], None] | None = None,
) -> GradientStore:
    """Write one row a file.

    The step is the number that ends a file's name where every name ends in one, else 0, 1, 2, ...
    in natural order of the names.

    Args:
        files: .npy (one array, named "gradient"), .npz, .pt (a tensor or a dict of tensors, loaded
            without running code) or .safetensors; all of one layout.
        out: the store to write.
        workers: how many files in a row, in the order of the steps, are those of one step's
            workers, such as the micro-batches of one batch; steps then count 0, 1, 2, ...
        if_exists: as `GradientStore.create` has it.
        progress: called with (files done, files).

    Returns:
        The store, open for appending.

    Raises:
        ValueError: no files, a suffix or content this cannot read, layouts that differ, or a
            number of files that is not a multiple of the workers.
        ImportError: reading .safetensors needs the package of that name.
        FileExistsError: something is at `out`.
    """
    paths = [Path(file) for file in files]
    for path in paths:
        if path.suffix not in LOADERS:
            raise ValueError(f"files must end in {', '.join(LOADERS)}, got {str(path)!r}")
    numbered = numbered_steps(paths)
    if workers < 1 or len(paths) % workers:
        raise ValueError(f"workers must divide the {len(paths)} files, got {workers!r}")
    provenance = {"source": "import", "files": len(paths), "first": numbered[0][1].name}
    first = _load(numbered[0][1])  # before `out` is touched
    store = GradientStore.create(out, provenance=provenance, if_exists=if_exists)
    try:
        for place, (number, path) in enumerate(numbered):
            step, worker = divmod(place, workers)
            _append(store, number if workers == 1 else step, worker, path, first)
            if progress:
                progress(place + 1, len(numbered))
    except BaseException:
        store.close()
        raise
    return store


def numbered_steps(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """Pair every file with its step, in order of the steps.

    Raises:
        ValueError: no files, or two whose names end in the same number.

    Example:
        >>> [step for step, _ in numbered_steps([Path("g10.npy"), Path("g9.npy")])]
        [9, 10]
    """
    if not paths:
        raise ValueError("files must name at least one file, got none")
    ends = [re.search(r"\d+$", path.stem) for path in paths]
    if not all(ends):
        return list(enumerate(sorted(paths, key=_natural)))
    steps = {int(end[0]): path for end, path in zip(ends, paths, strict=True) if end}
    if len(steps) < len(paths):
        twins = next(p for p in paths if p not in steps.values())
        raise ValueError(f"files must end in different numbers, got {twins.name!r} beside another")
    return sorted(steps.items())


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.findall(r"\d+|\D+", path.name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _append(store: GradientStore, step: int, worker: int, path: Path, first: Named) -> None:
    grads = _load(path)
    rows = f"{store.path} holds the files before it"
    if list(grads) != list(first):
        odd = sorted(set(grads) ^ set(first))
        fact = f"its names differ from the first file's: {', '.join(odd) or 'the order'}"
        raise ValueError(f"cannot import {path}: {fact}; {rows}")
    try:
        store.append(step, grads, worker)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot import {path}: {error}; {rows}") from error


def _load(path: Path) -> Named:
    try:
        named = LOADERS[path.suffix](path)
    except (ImportError, OSError):
        raise
    except Exception as error:  # every format has errors of its own
        fact = str(error).partition("\n")[0]
        raise ValueError(f"cannot read {path} as {path.suffix}: {fact}") from error
    if not named:
        raise ValueError(f"cannot import {path}: it holds no arrays")
    return named


def _load_npy(path: Path) -> Named:
    return {"gradient": np.load(path, allow_pickle=False)}


def _load_npz(path: Path) -> Named:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive.items())


def _load_pt(path: Path) -> Named:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        return {"gradient": content}
    if isinstance(content, Mapping) and all(isinstance(v, torch.Tensor) for v in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    raise ValueError(
        f"a .pt must hold a tensor or a dict of tensors, got {type(content).__name__}"
    )


def _load_safetensors(path: Path) -> Named:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        remedy = "pip install 'gradstats[safetensors]'"
        raise ImportError(f"cannot read {path}: safetensors is missing; {remedy}") from error
    return dict(load_file(path))


LOADERS: Mapping[str, Callable[[Path], Named]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".pt": _load_pt,
    ".safetensors": _load_safetensors,
}
