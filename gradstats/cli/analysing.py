"""Commands that compute results of a run: fit, replay, report."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradstats.cli.generated import command as command_of
from gradstats.cli.options import (
    ANALYSIS,
    AsJson,
    Axis,
    Factorised,
    Form,
    Jobs,
    Kernels,
    NetworkGbits,
    NetworkWorkers,
    Out,
    RunPath,
    network_of,
    open_run,
    opened_or_none,
    require,
)
from gradstats.cli.parsing import share
from gradstats.cli.printing import (
    bar,
    print_fits,
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
    from gradstats.replaying.settings import ReplaySettings
    from gradstats.reporting.settings import ReportSettings

app = typer.Typer()


@command_of(
    app,
    {
        "selection": "gradstats.cli.options:Selection",
        "settings": "gradstats.fitting.settings:FitSettings",
    },
    example="gradstats fit run.zarr --families laplace,dgamma --ratios 1%,0.1%",
)
def fit(
    run: RunPath,
    selection: "Selection",
    settings: "FitSettings",
    axis: Annotated[
        Axis,
        typer.Option(help="elements: all elements of one step; steps: one element over steps."),
    ] = Axis.elements,
    pairs: Annotated[
        bool, typer.Option(help="Compare the families in pairs too, by Vuong's test.")
    ] = False,
    jobs: Jobs = 1,
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
                opened,
                settings,
                out,
                axis=axis.value,
                pairs=pairs,
                executor=executor,
                progress=advance,
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
    example='gradstats replay run.zarr --compressors "topk,qsgd(bits=4)" --ratios 1%',
)
def replay(
    run: RunPath,
    selection: "Selection",
    settings: "ReplaySettings",
    rank_ratio: Annotated[
        float,
        typer.Option(
            callback=share, help="Also report factorised training at this rank ratio; 0: do not."
        ),
    ] = 0.0,
    factorised: Factorised = None,
    network_workers: NetworkWorkers = 8,
    network_gbits: NetworkGbits = 10.0,
    kernels: Kernels = Form.auto,
    jobs: Jobs = 1,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Replay captured gradients through compressors; an interrupted replay continues."""
    require("pandas", "pyarrow")
    from gradstats.kernels.forms import use
    from gradstats.replaying.into import replay_into
    from gradstats.replaying.resumable import FactorisedSettings
    from gradstats.runs.tasks import workers

    network = network_of(network_workers, network_gbits)
    native = opened_or_none(factorised)
    low_rank = FactorisedSettings(rank_ratio or 0.25, native) if rank_ratio or native else None
    with open_run(run, **vars(selection)) as opened:
        with bar() as advance, use(kernels.value), workers(jobs) as executor, usage():
            into = partial(replay_into, opened, settings, out, network=network)
            replayed = into(low_rank=low_rank, executor=executor, progress=advance)
        if not replayed.reason:
            remarks(what_was_replayed(opened))
    print_replay(replayed, network, several=settings.workers > 1, as_json=as_json)
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
    example="gradstats report run.zarr --budget 5min",
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
    jobs: Jobs = 1,
    out: Out = None,
) -> None:
    """Compute what is missing and write one HTML file, figures and tables."""
    require(*ANALYSIS)
    from gradstats.kernels.forms import use
    from gradstats.reporting.report import CONTENT, render_folder, report_into
    from gradstats.runs.groups import check_by
    from gradstats.runs.tasks import workers

    network = network_of(network_workers, network_gbits)
    if (run / CONTENT).is_file():  # a folder of results: its page again, without the run
        say(str(render_folder(run)))
        return
    with open_run(run, **vars(selection)) as opened, bar() as advance, use(kernels.value):
        with usage():
            check_by(opened, settings.by)
        chosen = replace(settings, network=network, factorised=opened_or_none(factorised))
        with workers(jobs) as executor:
            path = report_into(opened, chosen, out, executor=executor, progress=advance)
    say(str(path))
