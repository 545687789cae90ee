"""What the command line prints: results on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from gradstats.cli import tables
from gradstats.cli.describing import described, lines
from gradstats.cli.json_output import print_json
from gradstats.cli.progress import Advance, progress

if TYPE_CHECKING:
    from gradstats.fitting.resumable import Fitted
    from gradstats.network import Network
    from gradstats.replaying.into import Replayed
    from gradstats.runs import Run

out_console = Console(soft_wrap=True)
err_console = Console(stderr=True)
LAW_COLUMNS = ["family", "wins", "transfer", "tail", "ks", "anderson_darling", "wasserstein_1"]
LAW_COLUMNS += ["shape", "shape_se", "shape_spread", "scale"]
METHOD_COLUMNS = ["compressor", "feedback", "granularity", "rows", "khat_over_k", "error"]
METHOD_COLUMNS += ["error_compensated", "bits", "sent_bits", "encode_seconds", "exchange_seconds"]
METHOD_COLUMNS += ["residual_ratio", "settled"]
METHOD_COLUMNS += ["status"]
MEAN_COLUMNS = ["compressor", "feedback", "granularity", "nmse", "nmse_workers", "khat_over_k"]
MEAN_COLUMNS += ["bits", "wire_bits", "sum_bits", "fp16_error", "status"]


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


def complain(text: str) -> None:
    """Print why a command failed."""
    err_console.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


def bar() -> AbstractContextManager[Advance]:
    """Show progress on stderr; call what is returned: (stage, done, total)."""
    return progress(err_console)


def print_table(title: str, table: Any) -> None:
    """Print a DataFrame on stdout."""
    tables.print_table(out_console, title, table)


def print_fits(fitted: Fitted, *, as_json: bool = False) -> None:
    """Print the distributions of every group, SIDCo's thresholds, and what failed."""
    from gradstats.fitting.pairs import pair_table
    from gradstats.fitting.ranking import by_ratio

    fits, thresholds = fitted.table("fits"), fitted.table("thresholds")
    pivot = by_ratio(thresholds, ["group", "variant", "stages"]) if len(thresholds) else thresholds
    pairs = {"pairs": pair_table(fitted.table("pairs"))} if fitted.pairs else {}
    if as_json:
        print_json({"folder": fitted.folder, **fitted.medians, "thresholds": pivot, **pairs})
    else:
        _print_fits(fits, pivot, fitted.table("reuse"))
        for table in pairs.values():
            print_table("Pairs: mean ln(first / second density), nats per element", table)
    failed = int((fits["status"] != "ok").sum())
    if failed:
        remark(f"warning: {failed} of {len(fits)} rows could not be fitted; see status")


def _print_fits(fits: Any, thresholds: Any, reuse: Any) -> None:
    from gradstats.fitting.ranking import best_distribution, reuse_table

    for group, rows in fits.groupby("group", sort=False):
        good = rows[rows["status"] == "ok"]
        if len(good):
            steps = good["step"].nunique()
            title = f"{group}: distributions over elements, medians over {steps} rows"
            print_table(title, best_distribution(rows)[LAW_COLUMNS + ratios_of(rows)])
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


def print_replay(
    replayed: Replayed, network: Network, *, several: bool, as_json: bool = False
) -> None:
    """Print one line per method; for several workers, also the error of their mean."""
    methods, factorised = replayed.methods, replayed.factorised
    if as_json:
        document = {"folder": replayed.folder, "methods": methods, "factorised": factorised}
        print_json({**document, "network": vars(network)})
        return
    if len(methods):
        title = f"Replay: medians over steps; sent_bits and exchange_seconds for {network}"
        print_table(title, methods[METHOD_COLUMNS])
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


def print_rows(title: str, rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows of equal keys as a table."""
    if as_json:
        print_json(rows)
        return
    from gradstats.reporting.page import number

    cells = [[number(value) for value in row.values()] for row in rows]
    tables.print_cells(out_console, title, list(rows[0]), cells)


def print_document(document: dict[str, Any], *, as_json: bool) -> None:
    """Print the entries of a document, one per line; rows as tables, entries inside indented."""
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_rows(f"{name}:", value, as_json=False)
        elif isinstance(value, dict):
            say(f"{name}:")
            for inner, each in value.items():
                say(f"  {inner}: {plainly(each)}")
        elif value:
            say(f"{name}: {plainly(value)}")


def plainly(value: Any) -> str:
    """A value of a document in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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
