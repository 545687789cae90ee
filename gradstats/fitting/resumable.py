"""A folder of fits that grows row by row, and goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gradstats import extras
from gradstats.fitting.over_steps import over_steps, rank_table
from gradstats.fitting.ranking import best_law, reuse_table
from gradstats.fitting.run import TABLES, FitSettings, StepFits, fit_steps, rows_to_fit
from gradstats.fitting.threshold_reuse import Reuse
from gradstats.runs import Run
from gradstats.runs.results import run_settings

Progress = Callable[[str, int, int], None]  # stage, done, of how many
FLUSH_ROWS = 5_000  # of fits, kept in memory before they are written


def fit_into(
    run: Run,
    settings: FitSettings,
    folder: Path,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit a run into files, in bounded memory; an interrupted fit goes on where it was.

    Args:
        run: selects parameters and steps.
        settings: what to fit.
        folder: gets fits, thresholds, structure, reuse and ranks `.parquet`, settings.json,
            and fit.json with the medians. One of other settings is begun anew.
        executor: any `concurrent.futures.Executor`.
        progress: called with (stage, rows done, rows).
    """
    written = run_settings(run, **settings.names)
    parts = folder / "parts"
    first, followed = _state(folder, parts, written)
    total, buffer = rows_to_fit(run, settings), []
    for step in fit_steps(run, settings, first=first, followed=followed, executor=executor):
        buffer.append(step)
        if sum(len(each.rows["fits"]) for each in buffer) >= FLUSH_ROWS:
            _flush(parts, buffer)
            buffer = []
        if progress:
            progress("fit", step.index + 1, total)
    if buffer:
        _flush(parts, buffer)
    still = _read_json(parts / "state.json")["followed"]
    _write_tables(parts, "open", {"reuse": [Reuse(**each).row for each in still]})
    for name in TABLES:
        _join(parts, folder, name)
    ranks = rank_table(run, executor=executor)
    ranks.to_parquet(folder / "ranks.parquet", index=False)
    _write_json(folder / "fit.json", {"settings": written, **_medians(folder)})
    shutil.rmtree(parts)


def series_into(
    run: Run, folder: Path, *, executor: Executor | None = None, progress: Progress | None = None
) -> None:
    """The steps axis into `series.parquet`: every tracked element over the steps."""
    told = partial(progress, "over steps") if progress else None
    table = over_steps(run, executor=executor, progress=told)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "series.parquet", index=False)
    _write_json(folder / "settings.json", run_settings(run))


def _state(folder: Path, parts: Path, written: dict[str, Any]) -> tuple[int, list[Reuse]]:
    """Rows that are done, and the thresholds followed after them; clears what is not ours."""
    settings = json.loads(json.dumps(written))
    state = parts / "state.json"
    if state.exists() and _read_json(folder / "settings.json") == settings:
        kept = _read_json(state)
        return kept["rows"], [Reuse(**each) for each in kept["followed"]]
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    _write_json(folder / "settings.json", settings)
    return 0, []


def _flush(parts: Path, steps: Sequence[StepFits]) -> None:
    """Write the rows of some steps, then that they are there."""
    last = steps[-1]
    tables = {name: [row for step in steps for row in step.rows[name]] for name in TABLES}
    _write_tables(parts, f"{last.index:09d}", tables)
    done = {"rows": last.index + 1, "followed": [asdict(each) for each in last.followed]}
    _write_json(parts / "state.json", done)


def _write_tables(parts: Path, part: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    pandas = extras.load("pandas")
    for name, rows in tables.items():
        if rows:
            pandas.DataFrame(rows).to_parquet(parts / f"{name}-{part}.parquet", index=False)


def _join(parts: Path, folder: Path, name: str) -> None:
    """One file of all parts, one part in memory at a time."""
    arrow, parquet = (extras.load(module) for module in ("pyarrow", "pyarrow.parquet"))
    done = _read_json(parts / "state.json")["rows"]
    files = [
        file
        for file in sorted(parts.glob(f"{name}-*.parquet"))
        if (number := file.stem.partition("-")[2]) == "open" or int(number) < done
    ]
    path = folder / f"{name}.parquet"
    if not files:
        path.unlink(missing_ok=True)
        return
    schema = arrow.unify_schemas(
        [parquet.read_schema(file) for file in files], promote_options="permissive"
    ).remove_metadata()
    with parquet.ParquetWriter(path, schema) as writer:
        for file in files:
            table = parquet.read_table(file).replace_schema_metadata(None)
            writer.write_table(table.cast(schema) if table.schema != schema else table)


def read_table(folder: Path, name: str) -> Any:
    """A table of the folder, an empty one where there is no row."""
    pandas, path = extras.load("pandas"), folder / f"{name}.parquet"
    return pandas.read_parquet(path) if path.exists() else pandas.DataFrame()


def _medians(folder: Path) -> dict[str, Any]:
    """What the tables come to, as JSON has it."""
    fits = read_table(folder, "fits")
    failed = fits.loc[fits["status"] != "ok", "status"].value_counts()
    return {
        "laws": {
            str(group): _records(best_law(rows))
            for group, rows in fits.groupby("group", sort=False)
        },
        "reuse": _records(reuse_table(read_table(folder, "reuse"))),
        "failed": {str(reason): int(count) for reason, count in failed.items()},
    }


def _records(table: Any) -> Any:
    return json.loads(table.rename(columns=str).to_json(orient="records"))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, value: Any) -> None:
    """In one step: a file that is half written is not there."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1))
    os.replace(new, path)
