"""Options that commands share beside their settings, and the run that they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradstats.cli.parsing import parse_steps
from gradstats.cli.usage import usage

if TYPE_CHECKING:
    from gradstats.network import Network
    from gradstats.runs import Run


class Order(StrEnum):
    """Order of the files of an import."""

    natural = "natural"
    given = "given"


class Replacing(StrEnum):
    """What to do with a run that exists already."""

    error = "error"
    overwrite = "overwrite"


class Axis(StrEnum):
    """Axis of sampling."""

    elements = "elements"
    steps = "steps"


class Form(StrEnum):
    """Form of the kernels."""

    auto = "auto"
    eager = "eager"


RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A captured run, for example run.zarr.")
]
Parameters = Annotated[
    str, typer.Option(metavar="GLOB", help="Which parameters, by a glob on their names.")
]
Steps = Annotated[
    str, typer.Option(metavar="START:STOP:STRIDE", help="Which steps; one number: that step.")
]
Point = Annotated[
    str,
    typer.Option(
        help="Which gradients: local, outer, reduced or clipped; default: the first of these that "
        "the run has."
    ),
]
Worker = Annotated[int, typer.Option(help="Whose rows: the number of the worker.")]
NetworkWorkers = Annotated[
    int, typer.Option(min=2, help="Number of workers in the network that exchanges are timed for.")
]
NetworkGbits = Annotated[
    float, typer.Option(help="Bandwidth of each link of that network, in Gbit/s.")
]
GroupBy = Annotated[
    str,
    typer.Option(
        help="model, module-type, parameter, or a regular expression whose match groups."
    ),
]
Ratios = Annotated[str, typer.Option(help="Target ratios k/d, the fraction kept, with commas.")]
Specs = Annotated[
    str,
    typer.Option(
        help="Compressors with commas, e.g. topk,sidco-e(0.01); all: the reference methods too."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; default: RUN.results.")]
Kernels = Annotated[
    Form, typer.Option(help="auto: the fastest for the device; eager: plain torch, the reference.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fact = str(error).partition("\n")[0]
        raise typer.BadParameter(f"device must be there, got {device!r}: {fact}") from error


def network_of(workers: int, gbits: float) -> Network:
    """The network of `--network-workers` and `--network-gbits`."""
    from gradstats.network import Network

    if not gbits > 0:
        raise typer.BadParameter(f"network-gbits must be positive, got {gbits!r}")
    return Network(workers=workers, bandwidth=gbits * 1e9 / 8)


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
