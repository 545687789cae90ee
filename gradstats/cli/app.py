"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradstats.cli.generated import command as command_of
from gradstats.cli.interrupting import Interruptible, end_as_by_interrupt
from gradstats.cli.options import (
    AsJson,
    Axis,
    Factorised,
    Form,
    Kernels,
    NetworkGbits,
    NetworkWorkers,
    Order,
    Out,
    Replacing,
    RunPath,
    Seed,
    Steps,
    network_of,
    open_run,
    opened_or_none,
    require,
)
from gradstats.cli.parsing import at_least, parse_steps, words
from gradstats.cli.printing import (
    bar,
    counted,
    err_console,
    print_demo,
    print_fits,
    print_info,
    print_replay,
    print_series,
    remark,
    remarks,
    say,
    what_was_replayed,
)
from gradstats.cli.usage import usage

if TYPE_CHECKING:
    from gradstats.cli.options import Selection
    from gradstats.fitting.settings import FitSettings
    from gradstats.recording.settings import CaptureSettings
    from gradstats.replaying.settings import ReplaySettings
    from gradstats.reporting.settings import ReportSettings

app = typer.Typer(
    name="gradstats",
    cls=Interruptible,
    help="What do my gradients look like, and which compressor should carry them?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; exit with 0, 1 (failed), 2 (called wrongly) or 130 (interrupted)."""
    sys.path.insert(0, os.getcwd())  # compressors of one's own: my_module:Mine
    end_as_by_interrupt()
    try:
        app(prog_name="gradstats")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        err_console.print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        remarks(getattr(error, "__notes__", ()))
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
    from gradstats.runs.parts import noting

    if out.exists() and not overwrite:
        raise FileExistsError(f"cannot create {out}: it exists; --overwrite replaces it")
    plan = demo_module.QUICK if quick else demo_module.DEMO
    kept = f"the steps so far are in {out}; the same command with --overwrite begins anew"
    with noting(kept), bar() as advance:
        loss = demo_module.train(
            plan,
            out,
            seed=seed,
            if_exists="overwrite" if overwrite else "error",
            progress=lambda step, total, loss: advance(f"train, loss {loss:.2f}", step, total),
        )
    kept = f"the training is in {out}; gradstats report {out} continues"
    with noting(kept), open_run(out) as run, bar() as advance:
        path = demo_module.report_on(run, plan, seed=seed, progress=advance)
    print_demo(path.parent, loss)
    say(f"report: {path}")


@command_of(
    app,
    {"settings": "gradstats.recording.settings:CaptureSettings"},
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
            callback=at_least(1),
            help="Number of consecutive files that belong to one step, one per worker.",
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
    from gradstats.runs.parts import noting

    kept = f"{out} is as it was before; the same command begins anew"
    with noting(kept), bar() as advance:
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
        int, typer.Option(callback=at_least(0), help="Number of tracked elements to keep; 0: all.")
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
    from gradstats.runs.emptiness import check_rows

    with open_run(run) as opened:
        print_info(opened, as_json=as_json)
        check_rows(opened.store)


@command_of(
    app,
    {
        "selection": "gradstats.cli.options:Selection",
        "settings": "gradstats.fitting.settings:FitSettings",
    },
)
def fit(
    run: RunPath,
    selection: "Selection",
    settings: "FitSettings",
    axis: Annotated[
        Axis,
        typer.Option(help="elements: all elements of one step; steps: one element over steps."),
    ] = Axis.elements,
    jobs: Annotated[
        int, typer.Option(callback=at_least(1), help="Number of processes that fit.")
    ] = 1,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Fit distributions and derive SIDCo thresholds; an interrupted fit continues."""
    require("pandas", "pyarrow", "statsmodels")
    from gradstats.fitting.resumable import fit_into
    from gradstats.runs.tasks import workers

    with open_run(run, **vars(selection)) as opened:
        with bar() as advance, workers(jobs) as executor, usage():
            fitted = fit_into(
                opened, settings, out, axis=axis.value, executor=executor, progress=advance
            )
        remarks(opened.remarks)
    (print_fits if axis is Axis.elements else print_series)(fitted, as_json=as_json)
    remark(f"tables: {fitted.folder}")


@command_of(
    app,
    {
        "selection": "gradstats.cli.options:Selection",
        "settings": "gradstats.replaying.settings:ReplaySettings",
    },
    defaults={"feedback": ("none", "ef")},
)
def replay(
    run: RunPath,
    selection: "Selection",
    settings: "ReplaySettings",
    rank_ratio: Annotated[
        float,
        typer.Option(help="Also report factorised training at this rank ratio; 0: do not."),
    ] = 0.0,
    factorised: Factorised = None,
    kernels: Kernels = Form.auto,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Replay captured gradients through compressors; an interrupted replay continues."""
    require("pandas", "pyarrow")
    from gradstats.kernels.forms import use
    from gradstats.replaying.into import replay_into
    from gradstats.replaying.resumable import FactorisedSettings

    low_rank = FactorisedSettings(rank_ratio, opened_or_none(factorised)) if rank_ratio else None
    with open_run(run, **vars(selection)) as opened:
        with bar() as advance, use(kernels.value), usage():
            replayed = replay_into(opened, settings, out, low_rank=low_rank, progress=advance)
        if not replayed.reason:
            remarks(what_was_replayed(opened))
    print_replay(replayed, several=settings.workers > 1, as_json=as_json)
    remark(f"tables: {replayed.folder}")
    if replayed.reason:
        raise ValueError(replayed.reason)


@command_of(
    app,
    {
        "selection": "gradstats.cli.options:Selection",
        "settings": "gradstats.reporting.settings:ReportSettings",
    },
    without=("network", "factorised"),
)
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A captured run; or RUN.results, to write its page again."
        ),
    ],
    selection: "Selection",
    settings: "ReportSettings",
    network_workers: NetworkWorkers = 8,
    network_gbits: NetworkGbits = 10.0,
    factorised: Factorised = None,
    kernels: Kernels = Form.auto,
    out: Out = None,
) -> None:
    """Compute what is missing and write one HTML file, figures and tables."""
    from gradstats.kernels.forms import use
    from gradstats.reporting.report import CONTENT, render_folder, report_into
    from gradstats.runs.groups import check_by

    network = network_of(network_workers, network_gbits)
    if (run / CONTENT).is_file():  # a folder of results: its page again, without the run
        say(str(render_folder(run)))
        return
    with open_run(run, **vars(selection)) as opened, bar() as advance, use(kernels.value):
        with usage():
            check_by(opened, settings.by)
        chosen = replace(settings, network=network, factorised=opened_or_none(factorised))
        path = report_into(opened, chosen, out, progress=advance)
    say(str(path))
