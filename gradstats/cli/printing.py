"""What the command line prints: results on stdout, progress on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gradstats.fitting.resumable import Fitted
    from gradstats.runs import Run
    from gradstats.store import Parameter

out_console = Console(soft_wrap=True, width=1_000)  # a narrower one cuts the names in tables
err_console = Console(stderr=True)
LAW_COLUMNS = ["family", "wins", "transfer", "tail", "ks", "anderson_darling", "wasserstein_1"]
LAW_COLUMNS += ["shape", "shape_se", "shape_spread", "scale"]
SLOW = 2.0  # seconds after which a progress bar appears


def say(text: str) -> None:
    """Print a result as it is: brackets in names and paths are not markup."""
    out_console.print(text, highlight=False, markup=False)


def remark(text: str) -> None:
    """Print what is not a result."""
    err_console.print(text, highlight=False, markup=False, soft_wrap=True)


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
    """Print a DataFrame, three digits a number."""
    from gradstats.reporting.page import heading, number

    rich_table = RichTable(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        rich_table.add_column(
            Text(heading(column)), justify="left" if column == table.columns[0] else "right"
        )
    for row in table.itertuples(index=False):
        rich_table.add_row(*(Text(number(value)) for value in row))
    out_console.print(rich_table)


def print_fits(fitted: Fitted) -> None:
    """Print the laws of every group, SIDCo's thresholds, and what failed."""
    from gradstats.fitting.ranking import best_law, by_ratio, reuse_table

    fits, thresholds, reuse = (fitted.table(name) for name in ("fits", "thresholds", "reuse"))
    for group, rows in fits.groupby("group", sort=False):
        good = rows[rows["status"] == "ok"]
        if len(good):
            title = f"{group}: laws over elements, medians over {good['step'].nunique()} rows"
            print_table(title, best_law(rows)[LAW_COLUMNS + ratios_of(rows)])
        else:
            say(f"{group}: {rows['status'].iloc[0]}")
    if len(thresholds):
        pivot = by_ratio(thresholds, ["group", "variant", "stages"])
        print_table("SIDCo thresholds: median k̂/k by ratio", pivot)
    if len(reuse):
        print_table("Steps for which an exact threshold keeps k̂/k in 1 ± 20 %", reuse_table(reuse))
    failed = int((fits["status"] != "ok").sum())
    if failed:
        remark(f"warning: {failed} of {len(fits)} rows could not be fitted; see status")


def ratios_of(rows: Any) -> list[float]:
    """The target ratios of a table, the largest first."""
    return sorted(rows["target_ratio"].unique(), reverse=True)


def print_series(fitted: Fitted) -> None:
    """Print the medians of every parameter's elements over the steps."""
    series = fitted.table("series")
    columns = ["mean", "variance", "snr", "tail_index", "autocorrelation", "zeros"]
    by_parameter = series.groupby("parameter", sort=False)
    table = by_parameter[columns].median()
    table.insert(0, "elements", by_parameter.size())
    title = f"Elements over {int(series['n'].max())} steps: medians over tracked elements"
    print_table(title, table.reset_index())


def print_aggregates(methods: Any) -> None:
    """Print one line a method: what became of the mean over several workers."""
    columns = ["compressor", "feedback", "granularity", "nmse", "nmse_workers", "khat_over_k"]
    columns += ["bits", "wire", "sum_bits", "fp16_error", "status"]
    good = methods.sort_values("nmse")
    print_table("Mean over workers: medians over steps", good[columns])


def print_low_rank(rows: Any) -> None:
    """Print one line a kind of row of factorised training."""
    from gradstats.replaying.ranking import low_rank

    print_table("Low rank: a changed model, not an encoder", low_rank(rows))


def print_methods(methods: Any) -> None:
    """Print one line a method."""
    columns = ["compressor", "feedback", "granularity", "rows", "khat_over_k", "error"]
    columns += [
        "error_compensated",
        "bits",
        "encode_seconds",
        "residual_ratio",
        "settled",
        "status",
    ]
    print_table("Replay: medians over steps", methods[columns])


def print_info(run: Run) -> None:
    """Print what a run holds, and which parameters are not well."""
    from gradstats.runs.health import findings
    from gradstats.runs.run import FITTED

    store = run.store
    say(f"{run!r}, {store.nbytes / 1e6:,.1f} MB")
    for name, value in store.provenance.items():
        say(f"  {name}: {value}")
    for worker in store.workers:
        for kind in ("full", "track", "summary", "shadow"):
            of_worker = replace(run, worker=worker)
            stream = of_worker.stream(kind)
            if len(stream):
                steps = f"steps {stream.steps[0]}–{stream.steps[-1]}"
                points = ", ".join(sorted(set(stream.coordinates["point"])))
                inner = _inner_steps(stream.coordinates["inner_steps"])
                say(f"  worker {worker}: {len(stream)} {kind} rows, {steps}, {points}{inner}")
                for text in of_worker.reader(kind).remarks(range(len(stream))):
                    say(f"    {text}")
                undone = of_worker.undone(kind)
                if undone:
                    fact = f"{undone} of them undone by a later segment, which readers leave out"
                    say(f"    {fact}: {len(stream) - undone} rows are read")
    for stage in run.stages or (store.workers,):
        of_stage = replace(run, worker=stage[0]) if stage else run
        if len(run.stages) > 1:
            say(f"  worker {', '.join(map(str, stage))}: parameters that other workers lack")
        if any(of_stage.holds(kind) for kind in FITTED):
            for one in findings(of_stage):
                say(f"  {one.parameter}: {one.state}, {one.detail}")
        print_parameters(of_stage.table)


def print_parameters(table: Iterable[Parameter]) -> None:
    """Print one line for each parameter."""
    for parameter in table:
        shape = "×".join(map(str, parameter.shape)) or "scalar"
        sparse = "  sparse gradients" if parameter.layout != "dense" else ""
        tied = f"  tied with {', '.join(parameter.aliases)}" if parameter.aliases else ""
        kind = f"{parameter.dtype}  {parameter.module_type}"
        say(f"  {parameter.name}  {shape}  {kind}{sparse}{tied}")


def _inner_steps(counts: NDArray[np.int64]) -> str:
    """The inner steps that pseudo-gradients sum, where there are any."""
    known = counts[counts > 0]
    if not len(known):
        return ""
    span = f"{known.min()}" if known.min() == known.max() else f"{known.min()} to {known.max()}"
    return f", {span} inner steps"


def print_demo(folder: Path, loss: float) -> None:
    """Print what the demo found, in about ten lines."""
    from gradstats import extras
    from gradstats.cli.summary_lines import lines

    say(f"trained to {loss:.2f} nats a byte")
    methods, fits, thresholds = (
        extras.load("pandas").read_parquet(folder / f"{name}.parquet")
        for name in ("methods", "fits", "thresholds")
    )
    for line in lines(methods, fits, thresholds):
        say(line)
