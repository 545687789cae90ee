"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradstats.printing import (
    bar,
    err_console,
    print_demo,
    print_fits,
    print_info,
    print_methods,
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

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A captured run, e.g. run.zarr.")]
By = Annotated[str, typer.Option(help="Group by model, module-type or parameter.")]
Parameters = Annotated[str, typer.Option(metavar="GLOB", help="Which parameters to look at.")]
Steps = Annotated[str, typer.Option(metavar="START:STOP:STRIDE", help="Which steps.")]
Ratios = Annotated[str, typer.Option(help="Target ratios k/d, the fraction kept, with commas.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]
Out = Annotated[Path | None, typer.Option(help="Where to write; default RUN.results.")]


def main() -> None:
    """Run the command line; exit with 0, 1 (it failed) or 2 (it was called wrongly)."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
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
    from gradstats import demo as demo_module
    from gradstats import runs
    from gradstats.pipeline import report as make_report

    chosen = demo_module.QUICK if quick else demo_module.DEMO
    with bar() as advance:
        loss = demo_module.train(
            chosen,
            out,
            seed=seed,
            if_exists="overwrite" if overwrite else "error",
            progress=lambda step, total, loss: advance(f"train, loss {loss:.2f}", step, total),
        )
    with _open(out, runs.open) as run:
        with bar() as advance:
            path = make_report(run, budget=chosen.budget, seed=seed, progress=advance)
        print_demo(path.parent, loss)
    say(f"report: {path}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def capture(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to run.")],
    out: Annotated[Path, typer.Option(help="The run to write.")] = Path("run.zarr"),
    full_every: Annotated[
        int, typer.Option(help="Keep the whole gradient every n steps; 0: never.")
    ] = 500,
    track: Annotated[int, typer.Option(help="Elements kept at every step; 0: none.")] = 65_536,
    parameters: Parameters = "*",
    max_bytes: Annotated[str, typer.Option(help="Most that is written.")] = "20GB",
    if_exists: Annotated[str, typer.Option(help="error, resume or overwrite.")] = "error",
    seed: Seed = 0,
) -> None:
    """Run an unmodified training command and capture its gradients."""
    from gradstats.recording.command import run_command

    if if_exists not in ("error", "resume", "overwrite"):
        raise typer.BadParameter(
            f"if_exists must be error, resume or overwrite, got {if_exists!r}"
        )
    with _usage():
        code = run_command(
            command,
            out=out,
            full_every=full_every or None,
            track=track or None,
            parameters=parameters,
            max_bytes=max_bytes,
            if_exists=if_exists,  # type: ignore[arg-type]
            seed=seed,
        )
    raise typer.Exit(code)


@app.command(name="import")
def import_(
    files: Annotated[list[Path], typer.Argument(help=".npy, .npz, .pt or .safetensors files.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    if_exists: Annotated[str, typer.Option(help="error or overwrite.")] = "error",
) -> None:
    """Make a run of gradients that were saved elsewhere, one file a step."""
    from gradstats.importing import import_gradients

    if if_exists not in ("error", "overwrite"):
        raise typer.BadParameter(f"if_exists must be error or overwrite, got {if_exists!r}")
    with import_gradients(files, out, if_exists=if_exists) as store:
        rows = len(store.stream())
    say(f"{out}: {rows} rows")


@app.command()
def info(run: RunPath) -> None:
    """Say what a run holds."""
    from gradstats import runs

    with _open(run, runs.open) as opened:
        print_info(opened)


@app.command()
def fit(
    run: RunPath,
    families: Annotated[str, typer.Option(help="Laws, with commas.")] = "",
    method: Annotated[str, typer.Option(help="mle or moments.")] = "mle",
    by: By = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    ratios: Ratios = "0.1,0.01,0.001",
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Fit distributions and derive SIDCo thresholds."""
    from gradstats import extras, runs
    from gradstats.families import FAMILIES, family
    from gradstats.results import results_folder

    extras.load("pandas")  # what is missing is said before the work
    with _usage():
        chosen = [family(name) for name in _words(families)] or list(FAMILIES)
    wanted = _ratios(ratios)
    _check_by(by)
    _check_method(method, chosen)
    with _open(
        run, runs.open, parameters=parameters, steps=_steps(steps), device=device
    ) as opened:
        with bar() as advance:
            found = runs.groups(opened, by=by, progress=lambda i, n: advance("summarise", i, n))
        fits = runs.fit_table(found, families=chosen, ratios=wanted, method=method)
        thresholds = runs.threshold_table(found, ratios=wanted)
        folder = out or results_folder(opened)
    folder.mkdir(parents=True, exist_ok=True)
    fits.to_parquet(folder / "fits.parquet", index=False)
    thresholds.to_parquet(folder / "thresholds.parquet", index=False)
    print_fits(fits, thresholds)
    failed = int((fits["status"] != "ok").sum())
    if failed:
        remark(f"warning: {failed} of {len(fits)} rows could not be fitted; see status")
    remark(f"tables: {folder}")


@app.command()
def replay(
    run: RunPath,
    compressors: Annotated[
        str, typer.Option(help="Specs with commas, e.g. topk,sidco-e(0.01).")
    ] = "",
    feedback: Annotated[str, typer.Option(help="none, ef or both with a comma.")] = "none,ef",
    by: Annotated[str, typer.Option(help="One threshold a model, parameter or both.")] = "model",
    parameters: Parameters = "*",
    steps: Steps = "::",
    ratios: Ratios = "0.1,0.01,0.001",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Replay captured gradients through compressors and compare them."""
    from gradstats import extras, jobs, runs
    from gradstats.compressors import COMPRESSORS
    from gradstats.network import Network
    from gradstats.reporting import tables
    from gradstats.results import results_folder

    pandas = extras.load("pandas")  # what is missing is said before the work
    specs = _specs(compressors) or list(COMPRESSORS)
    wanted = _ratios(ratios)
    with _open(
        run, runs.open, parameters=parameters, steps=_steps(steps), device=device
    ) as opened:
        with _usage():
            planned = jobs.plan(
                opened,
                specs,
                ratios=wanted,
                feedback=_words(feedback),
                granularity=_words(by),
            )
        with bar() as advance:
            rows = jobs.replay_jobs(
                opened, planned, seed=seed, progress=lambda i, n: advance("replay", i, n)
            )
            advance("time", 0, 1)
            timings = jobs.timing_rows(opened, specs, ratios=wanted, seed=seed)
        folder = out or results_folder(opened)
    folder.mkdir(parents=True, exist_ok=True)
    replayed = pandas.DataFrame(rows)
    replayed.to_parquet(folder / "replay.parquet", index=False)
    methods = tables.methods_table(replayed, tables.timing_table(timings), Network())
    methods.to_parquet(folder / "methods.parquet", index=False)
    settings = {
        "specs": specs,
        "ratios": wanted,
        "feedback": feedback,
        "by": by,
        "parameters": parameters,
        "steps": steps,
        "seed": seed,
        "device": device,
    }
    (folder / "replay.json").write_text(_json(settings))
    print_methods(methods)
    remark(f"tables: {folder}")


@app.command()
def report(
    run: RunPath,
    budget: Annotated[str, typer.Option(help="Time for what is missing: 90s, 5min, 1h.")] = "5min",
    by: By = "module-type",
    parameters: Parameters = "*",
    steps: Steps = "::",
    ratios: Ratios = "0.1,0.01,0.001",
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Compute what is missing and write one HTML file, figures and tables."""
    from gradstats import runs
    from gradstats.pipeline import report as make_report

    _check_by(by)
    with (
        _open(run, runs.open, parameters=parameters, steps=_steps(steps), device=device) as opened,
        bar() as advance,
    ):
        path = make_report(
            opened,
            budget=_seconds(budget),
            by=by,
            out=out,
            ratios=_ratios(ratios),
            seed=seed,
            progress=advance,
        )
    say(str(path))


@contextmanager
def _open(path: Path, opener: Callable[..., Run], **selection: Any) -> Iterator[Run]:
    _check_device(selection.get("device", "cpu"))
    with _usage():
        run = opener(path, **selection)
    try:
        yield run
    finally:
        run.store.close()


@contextmanager
def _usage() -> Iterator[None]:
    """What is wrong in here is the value of an option, unless it is the store."""
    from gradstats.store import StoreFormatError

    try:
        yield
    except StoreFormatError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _check_by(by: str) -> None:
    from gradstats.runs import GROUPINGS

    if by not in GROUPINGS:
        raise typer.BadParameter(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fact = str(error).partition("\n")[0]
        raise typer.BadParameter(f"device must be there, got {device!r}: {fact}") from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _specs(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    specs, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += letter
    return [spec.strip() for spec in specs if spec.strip()]


def _ratios(text: str) -> list[float]:
    from gradstats.summary import check_ratio

    ratios = []
    for word in _words(text):
        try:
            ratio = float(word)
            check_ratio("ratio", ratio)
        except ValueError as error:
            raise typer.BadParameter(f"ratios must be numbers in (0, 1], got {word!r}") from error
        ratios.append(ratio)
    if not ratios:
        raise typer.BadParameter(f"ratios must name at least one ratio, got {text!r}")
    return ratios


def _steps(text: str) -> tuple[int | None, int | None, int]:
    found = re.fullmatch(r"(\d*)(?::(\d*)(?::(\d*))?)?", text)
    if not found or (found[1] == "" and ":" not in text) or found[3] == "0":
        raise typer.BadParameter(f"steps must look like 100:500:10, got {text!r}")
    if ":" not in text:
        return int(text), int(text) + 1, 1
    start, stop, stride = (int(word) if word else None for word in found.groups())
    return start, stop, stride or 1


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?", text.strip())
    if not found:
        raise typer.BadParameter(f"budget must look like 90s, 5min or 1h, got {text!r}")
    return float(found[1]) * {"min": 60, "m": 60, "h": 3600}.get(found[2] or "s", 1)


def _check_method(method: str, families: Sequence[Any]) -> None:
    for family in families:
        if method not in family.methods:
            raise typer.BadParameter(f"method must be one of {family.methods}, got {method!r}")


def _json(settings: dict[str, Any]) -> str:
    import json

    import gradstats

    return json.dumps({"gradstats": gradstats.__version__, **settings}, indent=1)


if __name__ == "__main__":
    main()
