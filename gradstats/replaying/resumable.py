"""The tables of a replay in a folder of results: what is there already is not computed again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradstats import extras
from gradstats.compressors import Compressor, Memory
from gradstats.compressors import compressors as members_of
from gradstats.network import Network
from gradstats.replaying.batches import KEY, Replaying, asked, key_of
from gradstats.replaying.columns import (
    EqualBitsRow,
    FactorisedRow,
    MethodRow,
    ReplayRow,
    TimingRow,
)
from gradstats.replaying.equal_bits import HYBRIDS, MOST_ELEMENTS, Topk, equal_bits_rows
from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.planning import Job, _made, ours
from gradstats.replaying.ranking import methods_table, timing_table
from gradstats.replaying.run import last_finite, replay_jobs, rows_expected, timed, timing_rows
from gradstats.replaying.settings import ReplaySettings
from gradstats.replaying.spreading import Pass, replay_ahead
from gradstats.replaying.streams import forget, rows_kept
from gradstats.runs import Run
from gradstats.runs.parts import Pace, at_once
from gradstats.runs.results import Results, run_settings
from gradstats.runs.tables import Made, Row, Table, frame

FIRST_BATCH_SECONDS = 10.0
TIMED = ["compressor", "feedback"]


def _make_replay(results: Results, what: Replaying, key: Row) -> None:
    """Replay what is missing until the deadline; the first batch has ten seconds in any case."""
    table = _whole_rows(results, key)
    known = {key_of(row) for row in table[KEY].drop_duplicates().to_dict("records")}
    for index, (name, batch) in enumerate(what.batches(results.opened)):
        jobs = [job for job in batch if what.key(job) not in known or not ours(job.compressor)]
        if not jobs:
            continue
        now, first = time.monotonic(), index == 0
        if now > what.deadline and not first:
            results.skipped.append(f"Not replayed, the budget was spent: {name}.")
            continue
        deadline = max(what.deadline, now + FIRST_BATCH_SECONDS) if first else what.deadline
        _replay_batch(results, replace(what, deadline=deadline), key, (name, jobs))
        known |= {what.key(job) for job in jobs}
    if not results.holds("replay", key):
        results.keep("replay", frame([], ReplayRow), key)


def _whole_rows(results: Results, key: Row) -> Table:
    """The rows of compressors that were replayed to the end."""
    kept = results.read("replay") if results.holds("replay", key) else frame([], ReplayRow)
    return kept[kept["whole"].astype(bool)]


def _replay_batch(
    results: Results, what: Replaying, key: Row, batch: tuple[str, list[Job]]
) -> None:
    """One pass over the rows, continued where an earlier one ended; into the table afterwards."""
    run, workers, pandas = results.opened, what.settings.workers, extras.load("pandas")
    (name, jobs), folder = batch, results.parts("replay", key)
    keys = {what.key(job) for job in jobs}
    table = _whole_rows(results, key)
    stay = table[[key_of(row) not in keys for row in table[KEY].to_dict("records")]]
    wanted = rows_expected(run, jobs, workers)
    total = rows_expected(run, what.jobs(run), workers)
    before = len(asked(stay, what.keys(run)))
    advance = results.stage(f"replay {name}")
    try:
        if results.executor:
            one = Pass(run, workers, what.seed, what.deadline, folder, what.kernels)
            replay_ahead(one, jobs, results.executor, advance)
        rows = replay_jobs(
            run,
            jobs,
            workers=workers,
            seed=what.seed,
            progress=advance,
            deadline=what.deadline,
            folder=folder,
        )
    except BaseException:
        results.keep_count(before + rows_kept(jobs, workers, folder), total)
        raise
    whole = len(rows) == wanted
    new = pandas.DataFrame(rows).assign(whole=whole)
    every = pandas.concat([stay, new], ignore_index=True) if len(stay) else new
    results.keep("replay", every, key)
    results.keep_count(before + len(rows), total)
    if not whole:
        fact = f"{len(rows):,} of {wanted:,} rows"
        results.skipped.append(f"Replayed in part, {fact}, the budget was spent: {name}.")
    elif forget(jobs, workers, folder):
        results.remove_parts("replay")


def _make_timings(results: Results, what: Replaying, key: Row) -> None:
    """Time what is missing; an interrupt leaves what was timed in the table."""
    settings = what.settings
    kept = results.read("timings") if results.holds("timings", key) else frame([], TimingRow)
    again = {
        name
        for name, member in timed(settings.compressors, settings.ratios).items()
        if not ours(member)
    }
    known = {tuple(row) for row in kept[TIMED].itertuples(index=False, name=None)} - again
    results.stage("time")(0, 1)
    table, pace = _Timings(results, key, asked(kept, [*known], TIMED)), Pace()

    def done(row: Row) -> None:
        table.rows.append(row)
        if pace.due:
            with pace.kept():
                table.keep()

    try:
        timing_rows(
            results.opened,
            settings.compressors,
            ratios=settings.ratios,
            seed=settings.seed,
            known=known,
            done=done,
        )
    finally:
        if table.rows or not results.holds("timings", key):
            table.keep()


@dataclass
class _Timings:
    """The table of timings while it grows."""

    results: Results
    key: Row
    before: Table
    rows: list[Row] = field(default_factory=list)

    def keep(self) -> None:
        """Write what is timed so far."""
        new, before = extras.load("pandas").DataFrame(self.rows), self.before
        every = [each for each in (before, new) if len(each)]
        table = extras.load("pandas").concat(every, ignore_index=True) if every else new
        self.results.keep("timings", timing_table(table), self.key)


def timings_of(results: Results, settings: ReplaySettings) -> Table:
    """The timings of the compressors of a replay, compared among themselves."""
    keys = [*timed(settings.compressors, settings.ratios)]
    return timing_table(asked(results.read("timings"), keys, TIMED))


def nothing_replayed(results: Results, what: Replaying) -> None:
    """Keep empty tables, of a run that holds no gradients."""
    for declared, row in ((REPLAY, ReplayRow), (TIMINGS, TimingRow)):
        (name,) = declared.tables
        results.keep(name, frame([], row), results.key(declared, what))


@dataclass(frozen=True)
class MethodSettings:
    """What the table of methods depends on, beside the rows of replay and timings.

    Attributes:
        keys: name the rows of the replay, see `Replaying.keys`.
        network: that exchanges are projected on, by its fields.
    """

    keys: Sequence[Sequence[Any]]
    network: Row


def _make_methods(results: Results, settings: MethodSettings, key: Row) -> None:
    replayed = asked(results.read("replay"), settings.keys)
    table = methods_table(replayed, results.read("timings"), Network(**settings.network))
    results.keep("methods", table, key)


@dataclass(frozen=True)
class EqualBitsSettings:
    """What the comparison at equal bits depends on.

    Attributes:
        compressors: without those that have a memory.
        ratios: of those that name none.
        seed: of the random methods.
    """

    compressors: tuple[str | Compressor, ...]
    ratios: tuple[float, ...]
    seed: int

    @classmethod
    def of(cls, settings: ReplaySettings) -> EqualBitsSettings:
        """Those of a replay."""
        chosen = [each for each in settings.compressors if not isinstance(_one(each), Memory)]
        return cls((*chosen, *HYBRIDS), settings.ratios, settings.seed)


def _one(spec: str | Compressor) -> Compressor:
    return members_of(spec, (0.5,))[0] if isinstance(spec, str) else spec


def _make_equal_bits(results: Results, settings: EqualBitsSettings, key: Row) -> None:
    all_ours = all(map(ours, _made(settings.compressors, (0.5,))))
    if results.holds("equal_bits", key) and all_ours:
        return
    grad = last_finite(results.opened)
    some = None if grad is None else grad[:: -(-grad.numel() // MOST_ELEMENTS)].contiguous()
    topk = None if some is None else Topk(some)
    advance = results.stage("equal bits")

    def of_each(first: int) -> Iterator[list[Row]]:
        for done, each in enumerate(settings.compressors[first:], first):
            advance(done, len(settings.compressors))
            chosen = (each, settings.ratios, settings.seed)
            yield [] if topk is None else equal_bits_rows(topk, *chosen)

    collect = results.collect("equal_bits", key) if all_ours else at_once
    rows = [row for of_one in collect(of_each) for row in of_one]
    rows.sort(key=lambda row: (math.isnan(row["over_topk"]), row["over_topk"]))
    results.keep("equal_bits", frame(rows, EqualBitsRow), key)
    results.remove_parts("equal_bits")


@dataclass(frozen=True)
class FactorisedSettings:
    """What the rows of factorised training depend on.

    Attributes:
        rank_ratio: of the factors.
        native: a captured run of the factorised model.
        most_rows: at most that many captured rows, evenly spaced.
    """

    rank_ratio: float = 0.25
    native: Run | None = None
    most_rows: int = 8

    @property
    def native_run(self) -> Row:
        """Which run it is."""
        return run_settings(self.native) if self.native else {}


def _make_factorised(results: Results, settings: FactorisedSettings, key: Row) -> None:
    table = factorised_rows(
        results.opened,
        rank_ratio=settings.rank_ratio,
        native=settings.native,
        most_rows=settings.most_rows,
        progress=results.stage("low rank"),
        collect=results.collect("factorised", key),
    )
    results.keep("factorised", table, key)
    results.remove_parts("factorised")


REPLAY = Made({"replay": ReplayRow}, _make_replay, ("seed", "kernels"), grows=True)
TIMINGS = Made({"timings": TimingRow}, _make_timings, ("seed", "kernels"), grows=True)
METHODS = Made(
    {"methods": MethodRow}, _make_methods, ("keys", "network"), needs=("replay", "timings")
)
EQUAL_BITS = Made(
    {"equal_bits": EqualBitsRow},
    _make_equal_bits,
    ("compressors", "ratios", "seed"),
    grows=True,
)
FACTORISED = Made(
    {"factorised": FactorisedRow}, _make_factorised, ("rank_ratio", "most_rows", "native_run")
)
