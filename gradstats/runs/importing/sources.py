"""Which files are one row: folders, patterns and indices expanded, shards joined."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradstats.runs.importing.formats import LOADERS, suffix_of, suffix_rule
from gradstats.runs.importing.order import ordered
from gradstats.settings import SettingError

Files = tuple[Path, ...]
Ranks = tuple[int, ...]

INDEX = ".index.json"
# files of a checkpoint folder that hold no gradients
_ASIDE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|trainer_state|rng_state|random_states)"
)
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_WORKER = re.compile(
    r"(?<![a-z])(?:(?:dp|ddp|global|local|data_parallel)[_-]?)?"
    r"(?:rank|worker|replica|gpu|device|process|proc|client|node|host)[_=\- ]?(\d+)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(?<![a-z])((?:mp|tp|pp|ep|model_parallel|tensor_parallel|pipeline)[_-]?rank)[_=\- ]?(\d+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """The files of one step and worker.

    Attributes:
        step: of the row; with `rows`, of the first of them.
        worker: from 0.
        files: more than one where a row is saved in shards.
    """

    step: int
    worker: int
    files: Files

    @property
    def name(self) -> str:
        """The name for messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


@dataclass(frozen=True)
class Found:
    """The sources in order of their steps.

    Attributes:
        sources: the sources of all workers.
        workers: number of workers.
        remark: how they were put in order.
        aside: names of files in folders that hold no gradients, such as optimizer.pt.
    """

    sources: tuple[Source, ...]
    workers: int
    remark: str
    aside: tuple[str, ...] = ()


def find_sources(files: Sequence[Path], *, workers: int, order: str, step_from: str) -> Found:
    """Find what is one row, and the order of the rows.

    Args:
        files: files, folders, patterns such as `g*.npy`, or indices of shards.
        workers: number of consecutive files that belong to one step; 1: as the names determine.
        order: see `ordered`.
        step_from: see `ordered`.

    Raises:
        ValueError: no files, one twice, a suffix that nothing reads, a shard that is missing, or
            names that give no order.
        FileNotFoundError: a file does not exist.
    """
    paths, aside = _spelled_out(files)
    if not paths:
        raise ValueError("files must name at least one file, got none")
    _check(paths)
    sources = _in_order(
        _joined_shards(paths, step_from), workers=workers, order=order, step_from=step_from
    )
    return replace(sources, aside=aside)


def _in_order(rows: Mapping[str, Files], *, workers: int, order: str, step_from: str) -> Found:
    if order == "given" and not step_from:
        steps: dict[str, dict[Ranks, Files]] = {name: {(): row} for name, row in rows.items()}
    else:
        steps = _by_worker(rows)
    ranks = sorted({rank for each in steps.values() for rank in each})
    if len(ranks) > 1 and workers not in (1, len(ranks)):
        fact = f"must be the {len(ranks)} that the file names give, got {workers!r}"
        raise SettingError("workers", fact)
    _check_complete(steps, ranks)
    in_order = ordered(list(steps), order=order, step_from=step_from)
    if len(ranks) > 1 or workers == 1:
        sources = tuple(
            Source(step, ranks.index(rank), steps[name][rank])
            for name, step in zip(in_order.names, in_order.steps, strict=True)
            for rank in ranks
        )
        return Found(sources, len(ranks), in_order.remark)
    return _consecutive([steps[name][()] for name in in_order.names], workers, in_order.remark)


def _consecutive(rows: Sequence[Files], workers: int, remark: str) -> Found:
    if workers < 1 or len(rows) % workers:
        raise SettingError("workers", f"must divide the {len(rows)} files, got {workers!r}")
    sources = (Source(*divmod(place, workers), row) for place, row in enumerate(rows))
    how = remark.partition(";")[0]
    return Found(
        tuple(sources), workers, f"{how}; steps count 0, 1, 2, …, of {workers} files each"
    )


def _spelled_out(files: Iterable[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """Expand folders, patterns and indices of shards; also return the files left aside."""
    given = [path for file in files for path in _matched(file)]
    paths: list[Path] = []
    aside: dict[str, None] = {}
    for path in (path for path in given if not path.name.endswith(INDEX)):
        inside = _inside(path) if path.is_dir() else [path]
        others = [each for each in inside if path.is_dir() and _ASIDE.match(each.name.lower())]
        paths += [each for each in inside if each not in others]
        aside |= dict.fromkeys(each.name for each in others)
    named = {path.resolve() for path in paths}
    for index in (path for path in given if path.name.endswith(INDEX)):
        paths += [shard for shard in _shards(index) if shard.resolve() not in named]
    return paths, tuple(aside)


def _matched(file: Path) -> list[Path]:
    """What a pattern matches that no shell has replaced."""
    if file.exists() or not glob.has_magic(str(file)):
        return [file]
    matches = [Path(each) for each in glob.glob(str(file), recursive=True)]
    if not matches:
        raise FileNotFoundError(f"cannot import {str(file)!r}: nothing matches it")
    return matches


def _inside(folder: Path) -> list[Path]:
    """The files below a folder that can be read, none that is hidden."""
    if (folder / "zarr.json").exists():
        remedy = f"gradstats copy {folder} OUT copies it"
        raise ValueError(f"cannot import {folder}: it is a Zarr store already; {remedy}")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if suffix_of(path) in LOADERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise ValueError(f"cannot import {folder}: no file in it ends in {', '.join(LOADERS)}")
    return files


def _shards(index: Path) -> list[Path]:
    """The shards that an index names."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {index}: it is no index of shards ({error!r})") from error
    return [index.with_name(name) for name in names]


def _check(paths: Sequence[Path]) -> None:
    real: dict[Path, Path] = {}
    for path in paths:
        if suffix_of(path) not in LOADERS:
            raise ValueError(suffix_rule(path))
        if not path.exists():
            raise FileNotFoundError(f"cannot import {path}: nothing is there; check the path")
        other = real.setdefault(path.resolve(), path)
        if other is not path:
            fact = f"{str(other)!r} and {str(path)!r} are one"
            raise ValueError(f"files must all be different, got {fact}; leave one out")


def _joined_shards(paths: Sequence[Path], step_from: str) -> dict[str, Files]:
    """By name, without the suffix, the files of one row in order.

    A .npy holds one array and is never a shard, nor is a file whose number of a shard is what
    `step_from` asks for.
    """
    rows: dict[str, dict[int, Path]] = {}
    totals: dict[str, int] = {}
    for path in paths:
        name = path.as_posix()[: -len(suffix_of(path))]
        shard = _SHARD.search(name)
        if shard and suffix_of(path) != ".npy" and not _asks_for(step_from, name, shard.start()):
            name = name[: shard.start()]
            totals[name] = int(shard[2])
        else:
            shard = None
        pieces = rows.setdefault(name, {})
        number = int(shard[1]) if shard else 0
        if number in pieces:
            fact = f"the same in {str(pieces[number])!r} and {str(path)!r}; leave one out"
            raise ValueError(f"files must differ in more than their suffix, got {fact}")
        pieces[number] = path
    for name, total in totals.items():
        _check_shards(name, rows[name], total)
    return {name: tuple(pieces[n] for n in sorted(pieces)) for name, pieces in rows.items()}


def _asks_for(step_from: str, name: str, start: int) -> bool:
    """Does the expression find its number behind a place of the name?"""
    try:
        match = re.search(step_from, name) if step_from else None
    except re.error:
        return False  # `ordered` says what is wrong with it
    return match is not None and match.end(match.re.groups and 1) > start


def _check_shards(name: str, pieces: dict[int, Path], total: int) -> None:
    missing = sorted(set(range(1, total + 1)) - set(pieces))
    if missing:
        fact = f"shard {missing[0]} of {total} of it is not among the files"
        raise ValueError(f"cannot import {name}: {fact}")


def _by_worker(rows: Mapping[str, Files]) -> dict[str, dict[Ranks, Files]]:
    """By name without the worker and by worker, the files of a row."""
    _check_parts(rows)
    short = {name: _PART.sub("", name) for name in rows}
    ranks = {name: tuple(map(int, _WORKER.findall(short[name]))) for name in rows}
    if len(set(ranks.values())) < 2:
        return {name: {(): row} for name, row in rows.items()}
    steps: dict[str, dict[Ranks, Files]] = {}
    for name, row in rows.items():
        steps.setdefault(_WORKER.sub("", short[name]), {})[ranks[name]] = row
    return steps


def _check_parts(names: Iterable[str]) -> None:
    """Refuse files that hold parts of one model, such as DeepSpeed's mp_rank_00, mp_rank_01."""
    first: dict[str, tuple[str, str]] = {}
    for name in names:
        for kind, number in _PART.findall(name):
            other, old = first.setdefault(kind, (name, number))
            if int(old) != int(number):
                fact = f"{other!r} and {name!r} hold parts of one model ({kind})"
                raise ValueError(f"cannot import {name}: {fact}; join them into one file per step")


def _check_complete(steps: Mapping[str, Mapping[Ranks, Files]], ranks: Sequence[Ranks]) -> None:
    for each in steps.values():
        missing = [rank for rank in ranks if rank not in each]
        if missing:
            which = ", ".join(map(str, missing[0])) or "without a number"
            file = next(iter(each.values()))[0]
            raise ValueError(
                f"cannot import {file}: worker {which}, which other steps have, has no file of "
                "its step; leave the step out, or that worker"
            )
