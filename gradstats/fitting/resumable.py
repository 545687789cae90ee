"""The tables of a fit in a folder of results: they grow row by row, and go on where they were."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from gradstats import extras
from gradstats.fitting.columns import ELEMENTS, FitRow, ReuseRow, StructureRow, ThresholdRow
from gradstats.fitting.over_steps import RANKS, SERIES, RankSettings
from gradstats.fitting.pairs import PAIRS
from gradstats.fitting.ranking import best_distribution, reuse_table
from gradstats.fitting.run import StepFits, check_axis, fit_steps, rows_to_fit, spread, with_spread
from gradstats.fitting.settings import FitSettings, PairSettings
from gradstats.fitting.threshold_reuse import Reuse
from gradstats.runs import Run
from gradstats.runs.parts import Pace, Parts, read_part, replacing
from gradstats.runs.results import (
    Progress,
    Results,
    in_json,
    mark,
    read_json,
    results_folder,
    write_json,
)
from gradstats.runs.tables import Made, Row, Table, frame
from gradstats.settings import SettingError, in_words

FLUSH_ROWS = 5_000  # of fits, kept in memory before they are written
ROWS = {"fits": FitRow, "thresholds": ThresholdRow, "structure": StructureRow, "reuse": ReuseRow}


def fits(suffix: str = "", deadline: float = math.inf) -> Made:
    """The tables of a fit; past the deadline (of `time.monotonic`) they are left unfinished."""
    tables = {f"{name}{suffix}": row for name, row in ROWS.items()}
    depends = tuple(each.name for each in fields(FitSettings))
    return Made(tables, partial(_make_fits, deadline=deadline), depends)


@dataclass(frozen=True)
class Fitted:
    """What a fit has put into a folder.

    Attributes:
        results: the folder.
        suffix: of the names of its tables, see `FitSettings.suffix`.
        pairs: whether families were compared in pairs, into the table `pairs`.
    """

    results: Results
    suffix: str = ""
    pairs: bool = False

    @property
    def folder(self) -> Path:
        """Where the tables lie."""
        return self.results.folder

    @property
    def medians(self) -> dict[str, Any]:
        """The contents of its fit.json: settings, medians per group, and what failed."""
        return dict(read_json(self.folder / f"fit{self.suffix}.json"))

    def table(self, name: str) -> Table:
        """A table of the fit by its plain name: fits, thresholds, structure, reuse, ranks."""
        return self.results.read(f"{name}{self.suffix}" if name in ROWS else name)


def fit_into(
    run: Run,
    settings: FitSettings,
    folder: Path | None = None,
    *,
    axis: str = ELEMENTS,
    pairs: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a run into files, in bounded memory; an interrupted fit goes on where it was.

    Args:
        run: selects parameters and steps.
        settings: what to fit.
        folder: gets the tables, settings.json, and fit.json with the medians; default
            `RUN.results`. Tables that are there under the same settings are not computed again.
        axis: of sampling: "elements", or "steps" for the table `series` of every tracked element.
        pairs: compare the families in pairs too, see `gradstats.compare_distributions`.
        executor: any `concurrent.futures.Executor`.
        progress: called with (stage, done, of how many).
    """
    check_axis(axis)
    results = Results(run, folder or results_folder(run), progress, executor)
    if pairs and (axis != ELEMENTS or settings.compensated is not None):
        other = "compensated=" if axis == ELEMENTS else f"axis {axis!r}"
        raise SettingError("pairs", f"must come without {other}: whole gradients are compared")
    if axis != ELEMENTS:
        with results.resumable():
            results.ensure(SERIES, settings)
        results.remember("fit", {"axis": axis})
        return Fitted(results)
    with results.resumable():
        results.ensure(fits(settings.suffix), settings)
        results.ensure(RANKS, RankSettings())
        if pairs:
            results.ensure(PAIRS, PairSettings.of(settings))
    words = in_words(vars(settings))
    results.remember("fit", words)
    fitted = Fitted(results, settings.suffix, pairs)
    medians = {"settings": {**results.identity, **in_json(words)}, **_medians(fitted)}
    write_json(results.folder / f"fit{settings.suffix}.json", medians)
    return fitted


def _make_fits(results: Results, settings: FitSettings, key: Row, *, deadline: float) -> None:
    name = f"fits{settings.suffix}"
    parts = Parts(results.parts(name, key))
    total = rows_to_fit(results.opened, settings)
    _fit_until(results, settings, parts, deadline)
    done = parts.done
    whole = done >= total
    _join_all(results, settings.suffix, parts, key if whole else {**key, "rows": [done, total]})
    if whole:
        results.remove_parts(name)
    else:
        fact = f"{done:,} of {total:,} rows, its share of the time was used up"
        results.skipped.append(f"Fitted in part, {fact}: {name}.")


def _fit_until(results: Results, settings: FitSettings, parts: Parts, deadline: float) -> None:
    """Fit the rows that are not in the parts; an interrupt leaves what is done in them."""
    total = rows_to_fit(results.opened, settings)
    advance = results.stage(f"fit{settings.suffix}".replace("_", " "))
    waiting, pace = _Waiting(parts), Pace()
    steps = fit_steps(
        results.opened,
        settings,
        first=parts.done,
        followed=_followed(parts),
        executor=results.executor,
    )
    try:
        for step in steps:
            waiting.steps.append(step)
            if pace.due or waiting.rows >= FLUSH_ROWS:
                with pace.kept():
                    waiting.flush()
            advance(step.index + 1, total)
            if time.monotonic() > deadline:
                break
    finally:
        waiting.flush()
        results.keep_count(parts.done, total)


@dataclass
class _Waiting:
    """Steps that are fitted, and not in the parts yet."""

    parts: Parts
    steps: list[StepFits] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows of fits they have."""
        return sum(len(step.rows["fits"]) for step in self.steps)

    def flush(self) -> None:
        """Write them, and the thresholds that are followed after them."""
        steps = [step for step in self.steps if step.index >= self.parts.done]
        if steps:
            tables = {name: [row for step in steps for row in step.rows[name]] for name in ROWS}
            followed = [asdict(each) for each in steps[-1].followed]
            self.parts.add({"rows": tables, "followed": followed}, len(steps))
        self.steps.clear()


def _followed(parts: Parts) -> list[Reuse]:
    """The thresholds that are followed after the rows that are done."""
    last = read_part(parts.files[-1])["followed"] if parts.files else []
    return [Reuse(**each) for each in last]


def _join_all(results: Results, suffix: str, parts: Parts, key: Row) -> None:
    """The tables of the folder from the parts that are done."""
    for name, row in ROWS.items():
        files = _frames(parts, name)
        if name == "fits":
            _add_spread(files)
        if files:
            _join(files, results.path(f"{name}{suffix}"), key)
        else:
            results.keep(f"{name}{suffix}", frame([], row), key)
        for file in files:
            file.unlink()


def _frames(parts: Parts, name: str) -> list[Path]:
    """One Parquet file for each part with rows of a table, in the folder of the parts."""
    pandas, files = extras.load("pandas"), []
    still_followed = {"rows": {"reuse": [each.row for each in _followed(parts)]}}
    for index, content in enumerate(chain(parts.contents(), [still_followed])):
        rows = content["rows"].get(name)
        if rows:
            files.append(parts.folder / f"{name}-{index:09d}.parquet")
            with replacing(files[-1]) as new:
                pandas.DataFrame(rows).to_parquet(new, index=False)
    return files


def _add_spread(files: Sequence[Path]) -> None:
    """Add the columns of `spread`, which looks at the rows of all files."""
    pandas = extras.load("pandas")
    columns = ["step", "group", "family", "shape", "scale"]
    every = [pandas.read_parquet(file, columns=columns) for file in files]
    between = spread(pandas.concat(every)) if every else None
    for file in files:
        with replacing(file) as new:
            with_spread(pandas.read_parquet(file), between).to_parquet(new, index=False)


def _join(files: Sequence[Path], path: Path, key: Row) -> None:
    """One file of all parts, one part in memory at a time."""
    arrow, parquet = (extras.load(module) for module in ("pyarrow", "pyarrow.parquet"))
    schema = arrow.unify_schemas(
        [parquet.read_schema(file) for file in files], promote_options="permissive"
    ).with_metadata(mark(key))
    with replacing(path) as new, parquet.ParquetWriter(new, schema) as writer:
        for file in files:
            table = parquet.read_table(file).replace_schema_metadata(mark(key))
            writer.write_table(table.cast(schema) if table.schema != schema else table)


def _medians(fitted: Fitted) -> dict[str, Any]:
    """What the tables come to, as JSON has it."""
    table = fitted.table("fits")
    failed = table.loc[table["status"] != "ok", "status"].value_counts()
    return {
        "laws": {
            str(group): _records(best_distribution(rows))
            for group, rows in table.groupby("group", sort=False)
        },
        "reuse": _records(reuse_table(fitted.table("reuse"))),
        "failed": {str(reason): int(count) for reason, count in failed.items()},
    }


def _records(table: Any) -> Any:
    return json.loads(table.rename(columns=str).to_json(orient="records"))
