"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradstats.cli.options import (
    By,
    Device,
    Kernels,
    Out,
    Parameters,
    Point,
    Ratios,
    RunPath,
    Seed,
    Specs,
    Steps,
    Worker,
    Workers,
    check_axis,
    check_counts,
    check_kernels,
    check_network,
    chosen_specs,
    open_run,
    parse_ratios,
    parse_seconds,
    parse_steps,
    selected,
    split_specs,
    usage,
    words,
)
from gradstats.cli.printing import (
    bar,
    err_console,
    print_aggregates,
    print_demo,
    print_fits,
    print_info,
    print_low_rank,
    print_methods,
    print_series,
    remark,
    say,
)

if TYPE_CHECKING:
    from gradstats.runs import Run

app = typer.Typer(
    name="gradstats",
    help="What do my gradients look like, and which compressor should carry them?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit with 0, 1 (it failed) or 2 (it was called wrongly)."""
    sys.path.insert(0, os.getcwd())  # compressors of one's own: my_module:Mine
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        err_console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    return escape(str(error) or type(error).__name__)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option(help="About 20 seconds; feedback is unsettled.")] = False,
    out: Annotated[Path, typer.Option(help="The run to write.")] = Path("demo.zarr"),
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier demo.")] = False,
    seed: Seed = 0,
) -> None:
    """Train a small language model, capture its gradients, and report on them."""
    from gradstats.cli import demo as demo_module
    from gradstats.reporting.report import report as make_report

    if out.exists() and not overwrite:
        raise FileExistsError(f"cannot create {out}: it exists; --overwrite replaces it")
    chosen = demo_module.QUICK if quick else demo_module.DEMO
    with bar() as advance:
        loss = demo_module.train(
            chosen,
            out,
            seed=seed,
            if_exists="overwrite" if overwrite else "error",
            progress=lambda step, total, loss: advance(f"train, loss {loss:.2f}", step, total),
        )
    with open_run(out) as run:
        with bar() as advance:
            path = make_report(run, budget=chosen.budget, seed=seed, progress=advance)
        print_demo(path.parent, loss)
    say(f"report: {path}")


@app.command(context_settings={"allow_interspersed_args": False})
def capture(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run.")],
    out: Annotated[
        Path, typer.Option(help="The run to write; a second training: run-2.zarr.")
    ] = Path("run.zarr"),
    full_every: Annotated[
        int, typer.Option(help="Keep the whole gradient every n steps; 0: never.")
    ] = 500,
    track: Annotated[int, typer.Option(help="Elements kept at every step; 0: none.")] = 65_536,
    summary: Annotated[bool, typer.Option(help="Keep a Summary a parameter and step.")] = False,
    shadow: Annotated[
        str, typer.Option(metavar="SPECS", help="Compressors that run beside the training.")
    ] = "",
    weights: Annotated[
        bool, typer.Option(help="Keep the weights too, with every whole gradient.")
    ] = False,
    at: Annotated[
        str, typer.Option(help="auto, or local, reduced, clipped, several with commas.")
    ] = "auto",
    parameters: Parameters = "*",
    max_bytes: Annotated[str, typer.Option(help="Most that is written.")] = "20GB",
    if_exists: Annotated[str, typer.Option(help="error, resume or overwrite.")] = "error",
    when_full: Annotated[
        str, typer.Option(help="When the disk is behind: block, drop or thin.")
    ] = "block",
    seed: Seed = 0,
) -> None:
    """Run an unmodified training command and capture its gradients."""
    from gradstats.recording.schedules import every
    from gradstats.recording.script.command import run_command
    from gradstats.recording.settings import CaptureSettings

    if if_exists not in ("error", "resume", "overwrite"):
        raise typer.BadParameter(
            f"if_exists must be error, resume or overwrite, got {if_exists!r}"
        )
    with usage():
        settings = CaptureSettings(
            full=every(full_every) if full_every else None,
            track=track,
            summary=summary,
            shadow=split_specs(shadow),
            weights=weights,
            at=words(at),
            parameters=parameters,
            max_bytes=max_bytes,
            if_exists=if_exists,  # type: ignore[arg-type]
            when_full=when_full,  # type: ignore[arg-type]
            seed=seed,
        )
        code = run_command(command, settings, out=out)
    raise typer.Exit(code)


@app.command(name="import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files, folders or patterns: .npy, .npz, .pt, .safetensors, .h5 …"),
    ],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    workers: Annotated[
        int,
        typer.Option(help="Number of consecutive files of one step, one per worker."),
    ] = 1,
    order: Annotated[
        str, typer.Option(help="natural: by the numbers in the paths; given: as they are given.")
    ] = "natural",
    step_from: Annotated[
        str, typer.Option(metavar="REGEX", help="Its group in the path is the step's number.")
    ] = "",
    rows: Annotated[
        bool, typer.Option(help="The first axis of every array counts the steps.")
    ] = False,
    key: Annotated[
        str, typer.Option(metavar="NAME", help="Entry that holds the gradients; *: all entries.")
    ] = "",
    if_exists: Annotated[str, typer.Option(help="error or overwrite.")] = "error",
) -> None:
    """Make a run of gradients that were saved elsewhere, one file per step and worker."""
    from gradstats.runs.importing import ORDERS, import_gradients

    if if_exists not in ("error", "overwrite"):
        raise typer.BadParameter(f"if_exists must be error or overwrite, got {if_exists!r}")
    if order not in ORDERS:
        raise typer.BadParameter(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    with bar() as advance:
        store = import_gradients(
            files,
            out,
            workers=workers,
            order=order,
            step_from=step_from,
            rows=rows,
            key=key,
            if_exists=if_exists,
            progress=lambda i, n: advance("import", i, n),
            say=say,
        )
    with store:
        written, of_each = len(store.stream()), len(store.workers)
    noun = "row" if written == 1 else "rows"
    say(f"{out}: {written} {noun}" + (f" of {of_each} workers each" if of_each > 1 else ""))


@app.command()
def copy(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="A folder, OUT.zarr.zip or a URL.")],
    steps: Steps = "::",
    dtype: Annotated[str, typer.Option(help="Convert gradients, e.g. to bfloat16.")] = "",
    mode: Annotated[
        str, typer.Option(help="full, track, summary, shadow: kinds of rows, with commas.")
    ] = "",
    track: Annotated[int, typer.Option(help="Keep this many tracked elements; 0: all.")] = 0,
    allow_loss: Annotated[
        bool, typer.Option(help="Accept what a narrower dtype makes infinite or 0.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Copy a run, or less of it, for sharing. Gradients can reveal training examples."""
    from gradstats.runs.copying import copy as copy_run
    from gradstats.runs.smaller import Smaller
    from gradstats.store.addresses import restored

    with usage():
        kinds = words(mode) or None
        smaller = Smaller(parse_steps(steps), dtype, kinds, track or None, seed, allow_loss)
    with bar() as advance:
        rows = copy_run(run, out, smaller, progress=lambda i, n: advance("copy", i, n), say=say)
    say(f"{restored(out)}: {rows} {'row' if rows == 1 else 'rows'}")


@app.command()
def info(run: RunPath) -> None:
    """Say what a run holds."""
    with open_run(run) as opened:
        print_info(opened)


@app.command()
def fit(
    run: RunPath,
    families: Annotated[str, typer.Option(help="Laws, with commas.")] = "",
    method: Annotated[str, typer.Option(help="mle or moments.")] = "mle",
    by: By = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    ratios: Ratios = "0.1,0.01,0.001",
    axis: Annotated[
        str, typer.Option(help="elements: one step's vector; steps: one element over steps.")
    ] = "elements",
    compensated: Annotated[
        str, typer.Option(metavar="SPEC", help="Fit what this compressor gets with feedback.")
    ] = "",
    bootstrap: Annotated[
        int, typer.Option(help="Replicates of a parametric bootstrap of 2,000 elements; slow.")
    ] = 0,
    jobs: Annotated[int, typer.Option(help="Processes that summarise and fit.")] = 1,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Fit distributions and derive SIDCo thresholds; an interrupted fit goes on where it was."""
    from gradstats import extras
    from gradstats.fitting.resumable import fit_into
    from gradstats.fitting.settings import FitSettings
    from gradstats.runs.tasks import workers

    for module in ("pandas", "pyarrow", "statsmodels"):
        extras.load(module)  # what is missing is said before the work
    check_axis(axis)
    check_counts(jobs, bootstrap)
    wanted = parse_ratios(ratios)
    with usage():
        settings = FitSettings(
            families=words(families) if families else None,
            ratios=wanted,
            by=by,
            method=method,
            bootstrap=bootstrap,
            compensated=compensated or None,
        )
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened:
        with bar() as advance, workers(jobs) as executor, usage():
            fitted = fit_into(
                opened, settings, out, axis=axis, executor=executor, progress=advance
            )
        for text in opened.remarks:
            remark(text)
    (print_fits if axis == "elements" else print_series)(fitted)
    remark(f"tables: {fitted.folder}")


@app.command()
def replay(
    run: RunPath,
    compressors: Specs = "",
    feedback: Annotated[str, typer.Option(help="none, ef or both with a comma.")] = "none,ef",
    by: Annotated[str, typer.Option(help="Threshold per model, per parameter or both.")] = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    workers: Workers = 1,
    ratios: Ratios = "0.1,0.01,0.001",
    rank_ratio: Annotated[
        float, typer.Option(help="Rows of a factorised model of this rank ratio too; 0: none.")
    ] = 0.0,
    factorised: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of the same model in factors.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    kernels: Kernels = "auto",
    out: Out = None,
) -> None:
    """Replay captured gradients through compressors and compare them."""
    from gradstats import extras
    from gradstats.kernels.forms import use
    from gradstats.replaying.into import replay_into
    from gradstats.replaying.resumable import FactorisedSettings
    from gradstats.replaying.settings import ReplaySettings
    from gradstats.runs import open as open_native

    extras.load("pandas")  # what is missing is said before the work
    check_kernels(kernels)
    with usage():
        settings = ReplaySettings(
            chosen_specs(compressors),
            ratios=parse_ratios(ratios),
            feedback=words(feedback),
            granularity=words(by),
            workers=workers,
            seed=seed,
        )
    native = open_native(factorised) if factorised and rank_ratio else None
    low_rank = FactorisedSettings(rank_ratio, native) if rank_ratio else None
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened:
        with bar() as advance, use(kernels), usage():
            replayed = replay_into(opened, settings, out, low_rank=low_rank, progress=advance)
        _remark_point(opened)
    print_methods(replayed.methods)
    if workers > 1:
        print_aggregates(replayed.methods)
    if replayed.factorised is not None:
        print_low_rank(replayed.factorised)
    remark(f"tables: {replayed.folder}")


@app.command()
def report(
    run: RunPath,
    budget: Annotated[str, typer.Option(help="Time for what is missing: 90s, 5min, 1h.")] = "5min",
    compressors: Specs = "",
    workers: Annotated[int, typer.Option(help="Workers of the network to project on.")] = 8,
    gbits: Annotated[float, typer.Option(help="Gbit/s of its links.")] = 10.0,
    factorised: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of the same model in factors.")
    ] = None,
    by: By = "module-type",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    ratios: Ratios = "0.1,0.01,0.001",
    seed: Seed = 0,
    device: Device = "cpu",
    kernels: Kernels = "auto",
    out: Out = None,
) -> None:
    """Compute what is missing and write one HTML file, figures and tables."""
    from gradstats.kernels.forms import use
    from gradstats.network import Network
    from gradstats.reporting.report import report as make_report
    from gradstats.runs import run as runs
    from gradstats.runs.groups import check_by

    check_network(workers, gbits)
    check_kernels(kernels)
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened, bar() as advance, use(kernels):
        with usage():
            check_by(opened, by)
        native = runs.open(factorised) if factorised else None
        path = make_report(
            opened,
            factorised=native,
            budget=parse_seconds(budget),
            compressors=chosen_specs(compressors),
            network=Network(workers=workers, bandwidth=gbits * 1e9 / 8),
            by=by,
            out=out,
            ratios=parse_ratios(ratios),
            seed=seed,
            progress=advance,
        )
    say(str(path))


def _remark_point(run: Run) -> None:
    """Say what was replayed, where that is not what a communication hook would get."""
    from gradstats.replaying.planning import UNDER_A_SCALE

    for text in run.remarks:
        remark(text)
    coordinates, row = run.stream(run.kind).coordinates, run.rows(run.kind)[0]
    point = str(coordinates["point"][row])
    if point == "outer":
        steps = int(coordinates["inner_steps"][row])
        what = f"of {steps} inner steps" if steps else "of an unknown number of inner steps"
        remark(
            f"these are pseudo-gradients {what}, of each worker before they are averaged: what a "
            "compressor gets in place of a gradient"
        )
    if run.multiplied and point == "local":
        remark(UNDER_A_SCALE)
    if point in ("reduced", "clipped"):
        remark(
            f"these gradients are {point}: a DDP communication hook does not receive them, it "
            "gets each worker's own; capture with at='local' to replay those"
        )
