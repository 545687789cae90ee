"""Commands that make, copy and look at runs: demo, capture, import, copy, info."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradstats.cli.commands import Command
from gradstats.cli.generated import command as command_of
from gradstats.cli.options import (
    ANALYSIS,
    AsJson,
    Order,
    Replacing,
    RunPath,
    Seed,
    Steps,
    open_run,
    require,
)
from gradstats.cli.parsing import at_least, parse_steps, words
from gradstats.cli.printing import bar, counted, print_demo, print_info, say
from gradstats.cli.usage import spelled, usage

if TYPE_CHECKING:
    from gradstats.recording.settings import CaptureSettings

app = typer.Typer()


@app.command(cls=Command, epilog="Example: gradstats demo --quick --out demo.zarr")
def demo(
    quick: Annotated[
        bool, typer.Option(help="Take about 20 seconds; error feedback does not settle in them.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The run to write.")] = Path("demo.zarr"),
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier demo.")] = False,
    seed: Seed = 0,
) -> None:
    """Train a small language model, capture its gradients, and report on them."""
    require(*ANALYSIS)
    from gradstats.cli import demo as demo_module
    from gradstats.runs.parts import noting

    demo_module.check_free(out, overwrite)
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
    example="gradstats capture --full-every 500 --out run.zarr -- torchrun train.py",
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


@app.command(
    name="import",
    cls=Command,
    epilog="Example: gradstats import grads/*.npy --out run.zarr --files-per-step 2",
)
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
    with noting(kept), bar() as advance, spelled(workers="files_per_step"):
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


@app.command(
    cls=Command, epilog="Example: gradstats copy run.zarr small.zarr.zip --dtype bfloat16"
)
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


@app.command(cls=Command, epilog="Example: gradstats info run.zarr --json")
def info(run: RunPath, as_json: AsJson = False) -> None:
    """Print what a run holds, and which parameters have unusual gradients."""
    from gradstats.runs.emptiness import check_rows

    with open_run(run) as opened:
        print_info(opened, as_json=as_json)
        check_rows(opened.store)
