"""Options that commands share, and how their values are read; a wrong one exits with 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gradstats.runs import Run

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A captured run, e.g. run.zarr.")]
By = Annotated[
    str,
    typer.Option(
        help="model, module-type, parameter, or a regular expression whose match groups."
    ),
]
Parameters = Annotated[str, typer.Option(metavar="GLOB", help="Which parameters to look at.")]
Steps = Annotated[str, typer.Option(metavar="START:STOP:STRIDE", help="Which steps.")]
Point = Annotated[
    str, typer.Option(help="local, outer, reduced or clipped; by default the first there is.")
]
Worker = Annotated[int, typer.Option(help="Which worker's rows.")]
Ratios = Annotated[str, typer.Option(help="Target ratios k/d, the fraction kept, with commas.")]
Specs = Annotated[
    str,
    typer.Option(
        help="Compressors with commas, e.g. topk,sidco-e(0.01); all: the reference methods too."
    ),
]
Workers = Annotated[
    int, typer.Option(help="How many workers exchange; their local gradients must be there.")
]
Kernels = Annotated[str, typer.Option(help="auto, or eager: the plain torch that defines them.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]
Out = Annotated[Path | None, typer.Option(help="Where to write; default RUN.results.")]


@contextmanager
def usage() -> Iterator[None]:
    """What is wrong in here is the value of an option, unless it is the store."""
    from gradstats.store import StoreFormatError

    try:
        yield
    except StoreFormatError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def check_axis(axis: str) -> None:
    """Refuse an unknown axis of sampling."""
    from gradstats.fitting.run import AXES

    if axis not in AXES:
        raise typer.BadParameter(f"axis must be one of {', '.join(AXES)}, got {axis!r}")


def check_counts(jobs: int, bootstrap: int) -> None:
    """Refuse a number of processes or of replicates that nothing can be done with."""
    if jobs < 1:
        raise typer.BadParameter(f"jobs must be at least 1, got {jobs!r}")
    if bootstrap < 0:
        raise typer.BadParameter(f"bootstrap must be at least 0, got {bootstrap!r}")


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fact = str(error).partition("\n")[0]
        raise typer.BadParameter(f"device must be there, got {device!r}: {fact}") from error


def words(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def split_specs(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    specs, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += letter
    return [spec.strip() for spec in specs if spec.strip()]


def chosen_specs(text: str) -> list[str]:
    """The compressors of `--compressors`: those supported by default, or all of them."""
    from gradstats.compressors import COMPRESSORS, SUPPORTED

    known = {"": SUPPORTED, "all": COMPRESSORS}
    return list(known[text]) if text in known else split_specs(text)


def check_kernels(form: str) -> None:
    """Raise a usage error unless `--kernels` is one of the forms there are."""
    from gradstats.kernels.forms import FORMS

    if form not in FORMS:
        raise typer.BadParameter(f"kernels must be one of {', '.join(FORMS)}, got {form!r}")


def parse_ratios(text: str) -> list[float]:
    """Target ratios between commas."""
    from gradstats.ratios import check_ratio

    ratios = []
    for word in words(text):
        try:
            ratio = float(word)
            check_ratio("ratio", ratio)
        except ValueError as error:
            raise typer.BadParameter(f"ratios must be numbers in (0, 1], got {word!r}") from error
        ratios.append(ratio)
    if not ratios:
        raise typer.BadParameter(f"ratios must name at least one ratio, got {text!r}")
    return ratios


def parse_steps(text: str) -> tuple[int | None, int | None, int]:
    """`START:STOP:STRIDE`, any of them left out, or one step."""
    found = re.fullmatch(r"(\d*)(?::(\d*)(?::(\d*))?)?", text)
    if not found or (found[1] == "" and ":" not in text) or found[3] == "0":
        raise typer.BadParameter(f"steps must look like 100:500:10, got {text!r}")
    if ":" not in text:
        return int(text), int(text) + 1, 1
    start, stop, stride = (int(word) if word else None for word in found.groups())
    return start, stop, stride or 1


def parse_seconds(text: str) -> float:
    """A time with its unit: 90s, 5min, 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?", text.strip())
    if not found:
        raise typer.BadParameter(f"budget must look like 90s, 5min or 1h, got {text!r}")
    return float(found[1]) * {"min": 60, "m": 60, "h": 3600}.get(found[2] or "s", 1)


def check_network(workers: int, gbits: float) -> None:
    """Refuse a network that nothing can be projected on."""
    if workers < 2:
        raise typer.BadParameter(f"workers must be at least 2, got {workers!r}")
    if not gbits > 0:
        raise typer.BadParameter(f"gbits must be positive, got {gbits!r}")


def selected(parameters: str, steps: str, point: str, worker: int, device: str) -> dict[str, Any]:
    """What of a run to look at, as `gradstats.open` takes it."""
    return {
        "parameters": parameters,
        "steps": parse_steps(steps),
        "point": point,
        "worker": worker,
        "device": device,
    }


@contextmanager
def open_run(path: Path, **selection: Any) -> Iterator[Run]:
    """Open a run for the time of a command."""
    from gradstats.runs import run as runs

    check_device(selection.get("device", "cpu"))
    with usage():
        run = runs.open(path, **selection)
    try:
        yield run
    finally:
        run.store.close()
