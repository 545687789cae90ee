"""Options that commands share beside their settings, and the run that they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradstats.cli.parsing import at_least
from gradstats.cli.usage import usage
from gradstats.settings import SettingError, setting

if TYPE_CHECKING:
    from gradstats.network import Network
    from gradstats.runs import Run


# packages that a report needs
ANALYSIS = ("pandas", "pyarrow", "scipy", "statsmodels", "seaborn", "jinja2")


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
Steps = Annotated[
    str, typer.Option(metavar="START:STOP:STRIDE", help="Which steps; one number: that step.")
]
NetworkWorkers = Annotated[
    int,
    typer.Option(
        callback=at_least(2), help="Number of workers in the network that exchanges are timed for."
    ),
]
NetworkGbits = Annotated[
    float, typer.Option(help="Bandwidth of each link of that network, in Gbit/s.")
]
Seed = Annotated[int, typer.Option(callback=at_least(0), help="Seed of all random choices.")]
Factorised = Annotated[
    Path | None, typer.Option(metavar="RUN", help="A captured run of the same model in factors.")
]
Out = Annotated[Path | None, typer.Option(help="Folder to write; default: RUN.results.")]
Kernels = Annotated[
    Form, typer.Option(help="auto: the fastest for the device; eager: plain torch, the reference.")
]
Jobs = Annotated[
    int, typer.Option(callback=at_least(1), help="Number of processes that share the work.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def network_of(workers: int, gbits: float) -> Network:
    """The network of `--network-workers` and `--network-gbits`."""
    from gradstats.network import Network

    if not gbits > 0:
        raise SettingError("network_gbits", f"must be positive, got {gbits!r}")
    return Network(workers=workers, bandwidth=gbits * 1e9 / 8)


@dataclass(frozen=True)
class Selection:
    """What of a run to look at, as `gradstats.open` takes it."""

    parameters: str = setting("*", "Which parameters, by a glob on their names.")
    steps: tuple[int | None, int | None, int] = setting(
        (None, None, 1), "Which steps; one number: that step."
    )
    point: str = setting(
        "", "Which gradients: local, outer, reduced or clipped; default: the first that there is."
    )
    worker: int = setting(0, "Number of the worker whose rows are read.")
    device: str = setting("cpu", "Where to compute: cpu, cuda, cuda:1 …")


def require(*modules: str) -> None:
    """Load what a command needs, so that a missing package is named before the work."""
    from gradstats import extras

    for module in modules:
        extras.load(module)


def opened_or_none(path: Path | None) -> Run | None:
    """Another run that a command compares with, if there is one."""
    from gradstats import runs

    return runs.opened(path, "factorised") if path else None


@contextmanager
def open_run(path: Path, **selection: Any) -> Iterator[Run]:
    """Open a run for the time of a command."""
    from gradstats import runs

    with usage():
        run = runs.open(path, **selection)
    try:
        yield run
    finally:
        run.store.close()
