"""What the command line prints: results on stdout, progress on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gradstats.cli.describing import described, lines
from gradstats.cli.json_output import print_json

if TYPE_CHECKING:
    from gradstats.fitting.resumable import Fitted
    from gradstats.replaying.into import Replayed
    from gradstats.runs import Run

out_console = Console(soft_wrap=True, width=1_000)  # a narrower one cuts the names in tables
err_console = Console(stderr=True)
LAW_COLUMNS = ["family", "wins", "transfer", "tail", "ks", "anderson_darling", "wasserstein_1"]
LAW_COLUMNS += ["shape", "shape_se", "shape_spread", "scale"]
METHOD_COLUMNS = ["compressor", "feedback", "granularity", "rows", "khat_over_k", "error"]
METHOD_COLUMNS += ["error_compensated", "bits", "encode_seconds", "residual_ratio", "settled"]
METHOD_COLUMNS += ["status"]
MEAN_COLUMNS = ["compressor", "feedback", "granularity", "nmse", "nmse_workers", "khat_over_k"]
MEAN_COLUMNS += ["bits", "wire", "sum_bits", "fp16_error", "status"]
SLOW = 2.0  # seconds after which a progress bar appears


def say(text: str) -> None:
    """Print a result as it is: brackets in names and paths are not markup."""
    out_console.print(text, highlight=False, markup=False)


def remark(text: str) -> None:
    """Print what is not a result."""
    err_console.print(text, highlight=False, markup=False, soft_wrap=True)


def remarks(texts: Iterable[str]) -> None:
    """Print what are not results."""
    for text in texts:
        remark(text)


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "row"), counted(20_000, "row")
        ('1 row', '20,000 rows')
    """
    return f"{number:,} {noun}" + "s" * (number != 1)


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr that appears after two seconds; call it: (stage, done, total)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=err_console, transient=True)
    task = progress.add_task("")
    start = time.monotonic()

    def advance(stage: str, done: int, total: int) -> None:
        if not progress.live.is_started and time.monotonic() - start > SLOW:
            progress.start()
        progress.update(task, description=stage, completed=done, total=total)

    try:
        yield advance
    finally:
        if progress.live.is_started:  # else it prints an empty line
            progress.stop()


def print_table(title: str, table: Any) -> None:
    """Print a DataFrame, three digits per number."""
    from gradstats.reporting.page import heading, number

    rich_table = RichTable(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        rich_table.add_column(
            Text(heading(column)), justify="left" if column == table.columns[0] else "right"
        )
    for row in table.itertuples(index=False):
        rich_table.add_row(*(Text(number(value)) for value in row))
    out_console.print(rich_table)


def print_fits(fitted: Fitted, *, as_json: bool = False) -> None:
    """Print the distributions of every group, SIDCo's thresholds, and what failed."""
    from gradstats.fitting.ranking import by_ratio

    fits, thresholds = fitted.table("fits"), fitted.table("thresholds")
    pivot = by_ratio(thresholds, ["group", "variant", "stages"]) if len(thresholds) else thresholds
    if as_json:
        print_json({"folder": fitted.folder, **fitted.medians, "thresholds": pivot})
    else:
        _print_fits(fits, pivot, fitted.table("reuse"))
    failed = int((fits["status"] != "ok").sum())
    if failed:
        remark(f"warning: {failed} of {len(fits)} rows could not be fitted; see status")


def _print_fits(fits: Any, thresholds: Any, reuse: Any) -> None:
    from gradstats.fitting.ranking import best_law, reuse_table

    for group, rows in fits.groupby("group", sort=False):
        good = rows[rows["status"] == "ok"]
        if len(good):
            steps = good["step"].nunique()
            title = f"{group}: distributions over elements, medians over {steps} rows"
            print_table(title, best_law(rows)[LAW_COLUMNS + ratios_of(rows)])
        else:
            say(f"{group}: {rows['status'].iloc[0]}")
    if len(thresholds):
        print_table("SIDCo thresholds: median k̂/k by ratio", thresholds)
    if len(reuse):
        print_table("Steps for which an exact threshold keeps k̂/k in 1 ± 20 %", reuse_table(reuse))


def ratios_of(rows: Any) -> list[float]:
    """The target ratios of a table, the largest first."""
    return sorted(rows["target_ratio"].unique(), reverse=True)


def print_series(fitted: Fitted, *, as_json: bool = False) -> None:
    """Print the medians of every parameter's elements over the steps."""
    series = fitted.table("series")
    columns = ["mean", "variance", "snr", "tail_index", "autocorrelation", "zeros"]
    by_parameter = series.groupby("parameter", sort=False)
    table = by_parameter[columns].median()
    table.insert(0, "elements", by_parameter.size())
    table = table.reset_index()
    if as_json:
        print_json({"folder": fitted.folder, "parameters": table})
        return
    title = f"Elements over {int(series['n'].max())} steps: medians over tracked elements"
    print_table(title, table)


def print_replay(replayed: Replayed, *, several: bool, as_json: bool = False) -> None:
    """Print one line per method; for several workers, also the error of their mean."""
    methods, factorised = replayed.methods, replayed.factorised
    if as_json:
        document = {"folder": replayed.folder, "methods": methods, "factorised": factorised}
        print_json(document)
        return
    if len(methods):
        print_table("Replay: medians over steps", methods[METHOD_COLUMNS])
    if several and len(methods):
        by_error = methods.sort_values("nmse")[MEAN_COLUMNS]
        print_table("Mean over workers: medians over steps", by_error)
    if factorised is not None:
        from gradstats.replaying.ranking import low_rank

        print_table("Low rank: a changed model, not an encoder", low_rank(factorised))


def print_info(run: Run, *, as_json: bool = False) -> None:
    """Print what a run holds, and which parameters have unusual gradients."""
    document = described(run)
    if as_json:
        print_json(document)
        return
    for line in lines(document):
        say(line)


def print_demo(folder: Path, loss: float) -> None:
    """Print the results of the demo in about ten lines."""
    from gradstats import extras
    from gradstats.cli.summary_lines import closing_lines

    say(f"trained to {loss:.2f} nats per byte")
    methods, fits, thresholds = (
        extras.load("pandas").read_parquet(folder / f"{name}.parquet")
        for name in ("methods", "fits", "thresholds")
    )
    for line in closing_lines(methods, fits, thresholds):
        say(line)


def what_was_replayed(run: Run) -> Iterator[str]:
    """What the gradients of a replay are, if a communication hook would get others."""
    from gradstats.replaying.planning import UNDER_A_SCALE

    yield from run.remarks
    coordinates, row = run.stream(run.kind).coordinates, run.rows(run.kind)[0]
    point = str(coordinates["point"][row])
    if point == "outer":
        steps = int(coordinates["inner_steps"][row])
        what = f"of {steps} inner steps" if steps else "of an unknown number of inner steps"
        yield (
            f"these are pseudo-gradients {what}, of each worker before they are averaged: what a "
            "compressor gets in place of a gradient"
        )
    if run.multiplied and point == "local":
        yield UNDER_A_SCALE
    if point in ("reduced", "clipped"):
        yield (
            f"these gradients are {point}: a DDP communication hook does not receive them, it "
            "gets each worker's own; capture with at='local' to replay those"
        )
