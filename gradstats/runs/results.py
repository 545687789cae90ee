"""The folder of a run's results: tables that are there already, and what they depend on."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import gradstats
from gradstats import extras
from gradstats.runs.run import FITTED, Run
from gradstats.store import InZip, StoreFormatError
from gradstats.store.layout import ragged_dtypes

Table = Any


@dataclass
class Results:
    """A folder of results: tables that are there already, and what was left out.

    Each table carries the settings it was made under, so that a table of other settings, or of
    another command, is never taken for ours.

    Attributes:
        folder: `RUN.results`.
        settings: what the tables depend on; a table made under other settings is made anew.
        skipped: what was left out, and why.
    """

    folder: Path
    settings: dict[str, Any]
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "figures").mkdir(exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(self.settings, indent=1))

    def table(self, name: str) -> Table:
        """The table of that name, None unless it was made under the same settings."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            return None
        table = extras.load("pandas").read_parquet(path)
        return table if table.attrs.get("settings") == self._written else None

    def keep(self, name: str, table: Table) -> Table:
        """Write a table for the next time and for others."""
        table.attrs = {"settings": self._written}
        table.to_parquet(self.folder / f"{name}.parquet", index=False)
        return table

    @property
    def _written(self) -> Any:
        """The settings as they come back from a file."""
        return json.loads(json.dumps(self.settings))


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
        found = zlib.crc32(stream.read(row).view(torch.uint8).numpy().data)
        for name in ragged_dtypes(kind, stream.table):
            found = zlib.crc32(stream.read_ragged(row, name).tobytes(), found)
    except StoreFormatError:  # a damaged row is a row with a status, not the end
        return 0
    return found


def device_name(device: str) -> str:
    """The device of the timings, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
