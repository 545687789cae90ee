"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradstats.cli.generated import command as command_of
from gradstats.cli.options import (
    AsJson,
    Axis,
    Device,
    Form,
    GroupBy,
    Kernels,
    NetworkGbits,
    NetworkWorkers,
    Order,
    Out,
    Parameters,
    Point,
    Ratios,
    Replacing,
    RunPath,
    Seed,
    Specs,
    Steps,
    Worker,
    network_of,
    open_run,
    selected,
)
from gradstats.cli.parsing import chosen_specs, parse_ratios, parse_seconds, parse_steps, words
from gradstats.cli.printing import (
    bar,
    counted,
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
from gradstats.cli.usage import usage

if TYPE_CHECKING:
    from gradstats.recording.settings import CaptureSettings
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
        app(prog_name="gradstats")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        err_console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    return escape(str(error) or type(error).__name__)


def _print_version(wanted: bool) -> None:
    if wanted:
        import gradstats

        say(gradstats.__version__)
        raise typer.Exit()


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What do my gradients look like, and which compressor should carry them?"""


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option(help="Take about 20 seconds; error feedback does not settle in them.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The run to write.")] = Path("demo.zarr"),
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier demo.")] = False,
    seed: Seed = 0,
) -> None:
    """Train a small language model, capture its gradients, and report on them."""
    from gradstats.cli import demo as demo_module

    if out.exists() and not overwrite:
        raise FileExistsError(f"cannot create {out}: it exists; --overwrite replaces it")
    plan = demo_module.QUICK if quick else demo_module.DEMO
    with bar() as advance:
        loss = demo_module.train(
            plan,
            out,
            seed=seed,
            if_exists="overwrite" if overwrite else "error",
            progress=lambda step, total, loss: advance(f"train, loss {loss:.2f}", step, total),
        )
    with open_run(out) as run, bar() as advance:
        path = demo_module.report_on(run, plan, seed=seed, progress=advance)
    print_demo(path.parent, loss)
    say(f"report: {path}")


@command_of(
    app,
    "gradstats.recording.settings:CaptureSettings",
    without=("on_summary", "local_by"),
    context={"allow_interspersed_args": False},
)
def capture(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="The training command to run.")
    ],
    settings: "CaptureSettings",
    out: Annotated[
        Path, typer.Option(help="The run to write; a second training writes run-2.zarr.")
    ] = Path("run.zarr"),
) -> None:
    """Run an unmodified training command and capture its gradients."""
    from gradstats.recording.script.command import run_command

    with usage():
        code = run_command(command, settings, out=out)
    raise typer.Exit(code)


@app.command(name="import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files, folders or patterns: .npy, .npz, .pt, .safetensors, .h5 …"),
    ],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    files_per_step: Annotated[
        int,
        typer.Option(
            min=1, help="Number of consecutive files that belong to one step, one per worker."
        ),
    ] = 1,
    order: Annotated[
        Order, typer.Option(help="natural: by the numbers in the paths; given: as listed.")
    ] = Order.natural,
    step_from: Annotated[
        str,
        typer.Option(
            metavar="REGEX", help="Pattern whose group, in each path, is the number of the step."
        ),
    ] = "",
    rows: Annotated[
        bool, typer.Option(help="The first axis of every array counts the steps.")
    ] = False,
    key: Annotated[
        str,
        typer.Option(metavar="NAME", help="Entry of each file that holds the gradients; *: all."),
    ] = "",
    if_exists: Annotated[
        Replacing, typer.Option(help="What to do if the run exists already.")
    ] = Replacing.error,
) -> None:
    """Make a run of gradients that were saved elsewhere, one file per step and worker."""
    from gradstats.runs.importing import import_gradients

    with bar() as advance:
        store = import_gradients(
            files,
            out,
            workers=files_per_step,
            order=order.value,
            step_from=step_from,
            rows=rows,
            key=key,
            if_exists=if_exists.value,
            progress=lambda done, total: advance("import", done, total),
            say=say,
        )
    with store:
        workers, number = len(store.workers), len(store.stream())
    say(f"{out}: {counted(number, 'row')}" + (f" for each of {workers} workers" * (workers > 1)))


@app.command()
def copy(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="What to write: a folder, OUT.zarr.zip or a URL.")],
    steps: Steps = "::",
    dtype: Annotated[
        str, typer.Option(help="Convert gradients to this dtype, for example bfloat16.")
    ] = "",
    mode: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="Kinds of rows: full, track, summary, shadow (comma-separated); default: all.",
        ),
    ] = "",
    track: Annotated[
        int, typer.Option(min=0, help="Number of tracked elements to keep; 0: all.")
    ] = 0,
    allow_loss: Annotated[
        bool, typer.Option(help="Accept elements that the dtype turns into infinity or 0.")
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
    say(f"{restored(out)}: {counted(rows, 'row')}")


@app.command()
def info(run: RunPath, as_json: AsJson = False) -> None:
    """Print what a run holds, and which parameters have unusual gradients."""
    with open_run(run) as opened:
        print_info(opened, as_json=as_json)


@app.command()
def fit(
    run: RunPath,
    families: Annotated[str, typer.Option(help="Laws, with commas.")] = "",
    method: Annotated[str, typer.Option(help="mle or moments.")] = "mle",
    group_by: GroupBy = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    ratios: Ratios = "0.1,0.01,0.001",
    axis: Annotated[
        Axis,
        typer.Option(help="elements: all elements of one step; steps: one element over steps."),
    ] = Axis.elements,
    compensated: Annotated[
        str, typer.Option(metavar="SPEC", help="Fit what this compressor gets with feedback.")
    ] = "",
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Replicates of a parametric bootstrap; 0: none."),
    ] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that summarise and fit.")] = 1,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Fit distributions and derive SIDCo thresholds; an interrupted fit goes on where it was."""
    from gradstats import extras
    from gradstats.fitting.resumable import fit_into
    from gradstats.fitting.settings import FitSettings
    from gradstats.runs.tasks import workers
    from gradstats.settings import from_keywords

    for module in ("pandas", "pyarrow", "statsmodels"):
        extras.load(module)  # what is missing is said before the work
    wanted = parse_ratios(ratios)
    with usage():
        given = {
            "families": words(families) if families else None,
            "ratios": wanted,
            "by": group_by,
            "method": method,
            "bootstrap": bootstrap,
            "compensated": compensated or None,
        }
        settings = from_keywords(FitSettings, given, verb="fit")
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened:
        with bar() as advance, workers(jobs) as executor, usage():
            fitted = fit_into(
                opened, settings, out, axis=axis.value, executor=executor, progress=advance
            )
        for text in opened.remarks:
            remark(text)
    (print_fits if axis is Axis.elements else print_series)(fitted)
    remark(f"tables: {fitted.folder}")


@app.command()
def replay(
    run: RunPath,
    compressors: Specs = "",
    feedback: Annotated[str, typer.Option(help="none, ef or both with a comma.")] = "none,ef",
    granularity: Annotated[
        str, typer.Option(help="Threshold per model, per parameter, or both (comma-separated).")
    ] = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    workers: Annotated[
        int, typer.Option(help="Number of captured workers whose gradients are exchanged.")
    ] = 1,
    ratios: Ratios = "0.1,0.01,0.001",
    rank_ratio: Annotated[
        float, typer.Option(help="Rows of a factorised model of this rank ratio too; 0: none.")
    ] = 0.0,
    factorised: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of the same model in factors.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    kernels: Kernels = Form.auto,
    out: Out = None,
) -> None:
    """Replay captured gradients through compressors and compare them."""
    from gradstats import extras
    from gradstats.kernels.forms import use
    from gradstats.replaying.into import replay_into
    from gradstats.replaying.resumable import FactorisedSettings
    from gradstats.replaying.settings import ReplaySettings
    from gradstats.runs import open as open_native
    from gradstats.settings import from_keywords

    extras.load("pandas")  # what is missing is said before the work
    with usage():
        given = {
            "compressors": chosen_specs(compressors),
            "ratios": parse_ratios(ratios),
            "feedback": words(feedback),
            "granularity": words(granularity),
            "workers": workers,
            "seed": seed,
        }
        settings = from_keywords(ReplaySettings, given, verb="replay")
    native = open_native(factorised) if factorised and rank_ratio else None
    low_rank = FactorisedSettings(rank_ratio, native) if rank_ratio else None
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened:
        with bar() as advance, use(kernels.value), usage():
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
    network_workers: NetworkWorkers = 8,
    network_gbits: NetworkGbits = 10.0,
    factorised: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run of the same model in factors.")
    ] = None,
    group_by: GroupBy = "module-type",
    parameters: Parameters = "*",
    steps: Steps = "::",
    point: Point = "",
    worker: Worker = 0,
    ratios: Ratios = "0.1,0.01,0.001",
    seed: Seed = 0,
    device: Device = "cpu",
    kernels: Kernels = Form.auto,
    out: Out = None,
) -> None:
    """Compute what is missing and write one HTML file, figures and tables."""
    from gradstats.kernels.forms import use
    from gradstats.reporting.report import CONTENT, render_folder
    from gradstats.reporting.report import report as make_report
    from gradstats.runs import run as runs
    from gradstats.runs.groups import check_by

    if (run / CONTENT).is_file():  # a folder of results: its page again, without the run
        say(str(render_folder(run)))
        return
    network = network_of(network_workers, network_gbits)
    selection = selected(parameters, steps, point, worker, device)
    with open_run(run, **selection) as opened, bar() as advance, use(kernels.value):
        with usage():
            check_by(opened, group_by)
        native = runs.open(factorised) if factorised else None
        path = make_report(
            opened,
            factorised=native,
            budget=parse_seconds(budget),
            compressors=chosen_specs(compressors),
            network=network,
            by=group_by,
            out=out,
            ratios=parse_ratios(ratios),
            seed=seed,
            progress=advance,
        )
    say(str(path))


def _remark_point(run: "Run") -> None:
    """Print what was replayed, if that is not what a communication hook would get."""
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
