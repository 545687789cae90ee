"""The folder of a run's results: `fit`, `replay` and `report` use each other's tables in it."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import gradstats
from gradstats import extras
from gradstats.runs.parts import Collect, Parts, replacing, resumed, writing
from gradstats.runs.run import Run
from gradstats.runs.selection import FITTED
from gradstats.runs.tables import Made, Row, Table
from gradstats.settings import SettingError, in_words
from gradstats.store import InZip, StoreFormatError
from gradstats.store.layout import ragged_dtypes

Progress = Callable[[str, int, int], None]  # stage, done, of how many
LAYOUT = 3  # of the folder: a table of another one is made anew, never misread
VERBS = ("fit", "replay", "report")
KEY = b"gradstats"  # where a file carries what its table depends on


@dataclass
class Results:
    """A folder of results: tables that are there already, and what makes those that are not.

    Each file carries the key it was made under: the run, the settings that its rows depend on, and
    the contents of the tables it was made of. A table of another key is never taken for ours.

    Attributes:
        run: what the tables are about; None to read a folder whose store is elsewhere.
        folder: `RUN.results`.
        progress: called with (stage, done, of how many).
        executor: where tasks run; None: in this process, one after another.
        skipped: what was left out, and why.
        kept: what of a table in work is in its parts, such as "1,204 of 3,000 rows are"; "" if
            no table is in work.
    """

    run: Run | None
    folder: Path
    progress: Progress | None = None
    executor: Executor | None = None
    skipped: list[str] = field(default_factory=list)
    kept: str = ""

    def __post_init__(self) -> None:
        if (self.folder / "zarr.json").exists():
            raise SettingError("out", f"must not be a run, got {str(self.folder)!r}")
        file = next((each for each in (self.folder, *self.folder.parents) if each.is_file()), None)
        if file is not None:
            fact = f"got {str(self.folder)!r}: {file} is a file"
            raise SettingError("out", f"must be a folder, {fact}")

    @cached_property
    def identity(self) -> Row:
        """The run and what of it is selected."""
        return dict(in_json(run_settings(self.opened)))

    @property
    def opened(self) -> Run:
        """The run.

        Raises:
            ValueError: the folder was opened without it.
        """
        if self.run is None:
            raise ValueError(f"cannot compute tables of {self.folder}: its run is not open")
        return self.run

    def stage(self, name: str) -> Callable[[int, int], None]:
        """Progress of one stage: call it with (done, of how many)."""
        progress = self.progress or (lambda stage, done, total: None)
        return lambda done, total: progress(name, done, total)

    def keep_count(self, done: int, total: int) -> None:
        """Remember how many rows of a table in work are in its parts."""
        self.kept = f"{done:,} of {total:,} rows are" if done else ""

    def collect(self, name: str, key: Row) -> Collect:
        """Return a function that makes the items of a table, those in its parts left out."""
        return lambda make: resumed(Parts(self.parts(name, key)), make)

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Add a note to an interrupt inside, or to an error in the middle of a table."""
        try:
            yield
        except BaseException as error:
            kept = self.kept or "what was finished is"
            if self.kept or isinstance(error, KeyboardInterrupt):
                error.add_note(f"{kept} in {self.folder}; the same command continues")
            raise

    def key(self, declared: Made, settings: Any) -> Row:
        """What the tables depend on, as JSON has it."""
        chosen = {name: in_words(getattr(settings, name)) for name in declared.depends}
        needs = {name: self.checksum(name) for name in declared.needs}
        key = {"layout": LAYOUT, "run": self.identity, "settings": chosen, "needs": needs}
        return dict(in_json(key))

    def ensure(self, declared: Made, settings: Any) -> None:
        """Make the tables, unless they are there."""
        key = self.key(declared, settings)
        if declared.grows or not all(self.holds(name, key) for name in declared.tables):
            declared.make(self, settings, key)

    def holds(self, name: str, key: Row) -> bool:
        """Whether there is a table of that name that was made under the key."""
        return self.key_of(name) == key

    def key_of(self, name: str) -> Row | None:
        """What a table was made under; None without it, or if it is none of ours."""
        parquet = extras.load("pyarrow.parquet")
        try:
            metadata = parquet.read_schema(self.path(name)).metadata or {}
            return dict(json.loads(metadata[KEY]))
        except (OSError, KeyError, ValueError):  # absent, damaged, or none of ours
            return None

    def read(self, name: str) -> Table:
        """The table of that name; an empty one where there is none."""
        pandas = extras.load("pandas")
        if not self.path(name).exists():
            return pandas.DataFrame()
        return pandas.read_parquet(self.path(name))

    def keep(self, name: str, table: Table, key: Row) -> None:
        """Write a table and what it depends on; a file that is half written is not there."""
        arrow, parquet = (extras.load(module) for module in ("pyarrow", "pyarrow.parquet"))
        content = arrow.Table.from_pandas(table, preserve_index=False)
        labelled = content.replace_schema_metadata(
            {**(content.schema.metadata or {}), **mark(key)}
        )
        with replacing(self.path(name)) as new:
            parquet.write_table(labelled, new)

    def path(self, name: str) -> Path:
        """Where a table lies."""
        return self.folder / f"{name}.parquet"

    def checksum(self, name: str) -> int:
        """CRC-32 of a table's file; 0 without one."""
        path = self.path(name)
        return zlib.crc32(path.read_bytes()) if path.exists() else 0

    def parts(self, name: str, key: Row) -> Path:
        """A folder for the parts of a table that takes long; those of another key are removed."""
        folder = self.folder / "parts" / name
        if read_json(folder / "key.json") != key:
            with writing(self.folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            write_json(folder / "key.json", key)
        return folder

    def remove_parts(self, name: str) -> None:
        """Remove the parts of a table that is whole, and their folder where it is empty."""
        folder = self.folder / "parts"
        shutil.rmtree(folder / name, ignore_errors=True)
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        self.kept = ""

    def remember(self, verb: str, settings: Any) -> None:
        """Write what reproduces the tables: the run, and the settings of each verb."""
        path = self.folder / "settings.json"
        before = read_json(path)
        same = isinstance(before, dict) and self.identity.items() <= before.items()
        verbs = {each: before[each] for each in VERBS if same and each in before}
        write_json(path, {**self.identity, **verbs, verb: in_words(settings)})


def mark(key: Row) -> dict[bytes, bytes]:
    """The key as metadata of a file."""
    return {KEY: json.dumps(key).encode()}


def in_json(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def read_json(path: Path) -> Any:
    """What a file holds; an empty dictionary without it, or if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """In one step: a file that is half written is not there."""
    with replacing(path) as new:
        new.write_text(json.dumps(value, indent=1), encoding="utf-8")


def results_folder(run: Run) -> Path:
    """`RUN.results` beside `RUN.zarr` or `RUN.zarr.zip`; of a URL, in the working directory."""
    place = run.store.path
    name = place.name.removesuffix(".zip").removesuffix(".zarr") + ".results"
    if isinstance(place, InZip):
        return Path(place.root).with_name(name)
    return place.with_name(name) if isinstance(place, Path) else Path(name)


def run_settings(run: Run, **settings: Any) -> dict[str, Any]:
    """What the tables of a run depend on: the run itself, the selection, and `settings`."""
    kinds = {kind: run.rows(kind) for kind in FITTED}
    name = {"id": run.store.run} if run.store.run else {}  # stores of before have none
    return {
        "gradstats": gradstats.__version__,
        "torch": torch.__version__,
        "run": run.store.path.name,
        **name,
        "captured": run.store.provenance.get("created"),
        "rows": {kind: len(rows) for kind, rows in kinds.items()},
        "last_step": max(
            (int(run.stream(kind).steps[rows[-1]]) for kind, rows in kinds.items() if rows),
            default=None,
        ),
        "checksum": _checksum(run),
        "parameters": run.parameters if isinstance(run.parameters, str) else [*run.parameters],
        "steps": list(run.steps),
        "worker": run.worker,
        "point": run.point,
        "device": device_name(run.device),
        **settings,
    }


def _checksum(run: Run) -> int:
    """CRC-32 of the last row: another run may have been written in the place of this one."""
    kind = run.fitted_kind
    row, stream = run.rows(kind)[-1], run.stream(kind)
    try:
        if kind == "summary":
            return zlib.crc32(stream.read_bytes(row))
        checksum = zlib.crc32(stream.read(row).view(torch.uint8).numpy().data)
        for name in ragged_dtypes(kind, stream.table):
            checksum = zlib.crc32(stream.read_ragged(row, name).tobytes(), checksum)
    except StoreFormatError:  # a damaged row is a row with a status, not the end
        return 0
    return checksum


def device_name(device: str) -> str:
    """The device of the timings, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
