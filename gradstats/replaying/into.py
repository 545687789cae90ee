"""Replay a run into its folder of results."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path

from gradstats.network import Network
from gradstats.replaying.batches import Replaying
from gradstats.replaying.planning import _made, planned
from gradstats.replaying.resumable import (
    FACTORISED,
    METHODS,
    REPLAY,
    TIMINGS,
    FactorisedSettings,
    MethodSettings,
    nothing_replayed,
)
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs import Run
from gradstats.runs.results import Progress, Results, results_folder
from gradstats.runs.tables import Row, Table
from gradstats.settings import in_words


@dataclass(frozen=True)
class Replayed:
    """What a replay has put into a folder.

    Attributes:
        folder: where the tables lie.
        methods: medians over steps, a row per method and setting.
        factorised: rows of factorised training; None unless they were asked for.
        reason: why the tables are empty; "" if something was replayed.
    """

    folder: Path
    methods: Table
    factorised: Table = None
    reason: str = ""


def replay_into(
    run: Run,
    settings: ReplaySettings,
    folder: Path | None = None,
    *,
    network: Network | None = None,
    low_rank: FactorisedSettings | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Replay and time compressors into files; an interrupted replay continues after its last row.

    Rows and the states of compressors are written every 10 s, and when an interrupt or an error
    ends the work. The rows are those of a replay in one piece, bit for bit.

    Rows that the folder holds already, of whichever command, are not computed again, but for
    those of compressors of one's own, whose code may have changed.

    Args:
        run: selects parameters and steps.
        settings: what to replay.
        folder: gets the tables replay, timings and methods, and settings.json; default
            `RUN.results`.
        network: that exchanges are projected on; default 8 workers at 10 Gbit/s.
        low_rank: rows of factorised training too.
        executor: any `concurrent.futures.Executor` of processes on this machine.
        progress: called with (stage, done, of how many).

    Raises:
        ValueError: an unknown compressor, or fewer workers were captured.
    """
    results = Results(run, folder or results_folder(run), progress, executor)
    what = Replaying(settings)
    priced = asdict(network or Network())
    if run.fitted_kind == "summary":
        return _nothing(results, what, priced)
    planned(run, settings)  # what is wrong is said before the work
    run.beside(settings.workers)
    with results.resumable():
        results.ensure(REPLAY, what)
        results.ensure(TIMINGS, what)
        results.ensure(METHODS, MethodSettings(what.keys(run), priced))
        if low_rank:
            results.ensure(FACTORISED, low_rank)
    results.remember("replay", in_words(vars(settings)))
    rows = results.read("factorised") if low_rank else None
    return Replayed(results.folder, results.read("methods"), rows)


def _nothing(results: Results, what: Replaying, network: Row) -> Replayed:
    """The empty tables of a run of Summaries."""
    _made(what.settings.compressors, what.settings.ratios)  # an unknown one is an error before
    nothing_replayed(results, what)
    results.ensure(METHODS, MethodSettings((), network))
    results.remember("replay", in_words(vars(what.settings)))
    reason = f"cannot replay {results.opened.store.path}: it holds only Summaries, no gradients"
    remedy = "fit and report work on those; capture with full= or track= to replay"
    return Replayed(results.folder, results.read("methods"), reason=f"{reason}; {remedy}")
