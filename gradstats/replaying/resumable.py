"""The tables of a replay in a folder of results: what is there already is not computed again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gradstats import extras
from gradstats.compressors import Compressor, Memory
from gradstats.compressors import compressors as members_of
from gradstats.kernels.forms import form
from gradstats.network import Network
from gradstats.replaying.columns import (
    EqualBitsRow,
    FactorisedRow,
    MethodRow,
    ReplayRow,
    TimingRow,
)
from gradstats.replaying.equal_bits import HYBRIDS, MOST_ELEMENTS, equal_bits
from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.planning import Job, _made, ours, plan
from gradstats.replaying.ranking import methods_table, timing_table
from gradstats.replaying.run import last_finite, replay_jobs, rows_expected, timed, timing_rows
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs import Run
from gradstats.runs.results import Results, run_settings
from gradstats.runs.tables import Made, Row, Table, frame

FIRST_BATCH_SECONDS = 10.0
KEY = ["compressor", "feedback", "granularity", "dense", "rows", "workers"]
TIMED = ["compressor", "feedback"]
Wanted = Callable[[Job], bool]


@dataclass(frozen=True)
class Replaying:
    """What to replay and time, and until when.

    Attributes:
        settings: of the replay.
        wanted: whether to replay a job of the plan.
        deadline: of `time.monotonic`; past it no further batch begins.
    """

    settings: ReplaySettings
    wanted: Wanted = lambda job: True
    deadline: float = math.inf

    @property
    def seed(self) -> int:
        """Of the random methods."""
        return self.settings.seed

    @property
    def kernels(self) -> str:
        """The form of the kernels that run."""
        return form()

    def batches(self, run: Run) -> Iterator[tuple[str, list[Job]]]:
        """What to replay, the most telling first; each batch is one pass over the rows."""
        settings = self.settings
        ratios = sorted(settings.ratios, key=lambda ratio: (ratio != 0.01, ratio))
        each_ratio: list[list[float]] = [[ratio] for ratio in ratios] or [[]]
        for granularity, ratio in product(settings.granularity, each_ratio):
            jobs = plan(
                run,
                settings.compressors,
                ratios=ratio,
                feedback=settings.feedback,
                granularity=[granularity],
            )
            at = f"ratio {ratio[0]:g}, " if ratio else ""
            yield f"{at}one threshold per {granularity}", [job for job in jobs if self.wanted(job)]

    def keys(self, run: Run) -> list[list[Any]]:
        """What names the rows of all batches."""
        jobs = [job for _, batch in self.batches(run) for job in batch]
        return [list(key) for key in dict.fromkeys(self.key(job) for job in jobs)]

    def key(self, job: Job) -> tuple[Any, ...]:
        """What names the rows of a job."""
        return _key({**job.labels, "workers": self.settings.workers})


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def asked(table: Table, keys: Sequence[Sequence[Any]], columns: Sequence[str] = KEY) -> Table:
    """The rows of a table that `keys` name."""
    if not len(table):
        return table
    wanted = {tuple(key) for key in keys}
    rows = table[list(columns)].itertuples(index=False, name=None)
    return table[[row in wanted for row in rows]].reset_index(drop=True)


def _make_replay(results: Results, what: Replaying, key: Row) -> None:
    """Replay what is missing until the deadline; the first batch has ten seconds in any case."""
    run, pandas = results.opened, extras.load("pandas")
    kept = results.read("replay") if results.holds("replay", key) else frame([], ReplayRow)
    kept = kept[kept["whole"].astype(bool)]
    known = {_key(row) for row in kept[KEY].drop_duplicates().to_dict("records")}
    for index, (name, batch) in enumerate(what.batches(run)):
        jobs = [job for job in batch if what.key(job) not in known or not ours(job.compressor)]
        if not jobs:
            continue
        now, first = time.monotonic(), index == 0
        if now > what.deadline and not first:
            results.skipped.append(f"Not replayed, the budget was spent: {name}.")
            continue
        rows = replay_jobs(
            run,
            jobs,
            workers=what.settings.workers,
            seed=what.seed,
            progress=results.stage(f"replay {name}"),
            deadline=max(what.deadline, now + FIRST_BATCH_SECONDS) if first else what.deadline,
        )
        wanted = rows_expected(run, jobs)
        if len(rows) < wanted:
            fact = f"{len(rows):,} of {wanted:,} rows"
            results.skipped.append(f"Replayed in part, {fact}, the budget was spent: {name}.")
        new = pandas.DataFrame(rows).assign(whole=len(rows) == wanted)
        again = {what.key(job) for job in jobs}
        stay = kept[[_key(row) not in again for row in kept[KEY].to_dict("records")]]
        kept = pandas.concat([stay, new], ignore_index=True) if len(stay) else new
        known |= again
        results.keep("replay", kept, key)
    if not results.holds("replay", key):
        results.keep("replay", frame([], ReplayRow), key)


def _make_timings(results: Results, what: Replaying, key: Row) -> None:
    """Time what is missing."""
    settings, pandas = what.settings, extras.load("pandas")
    kept = results.read("timings") if results.holds("timings", key) else frame([], TimingRow)
    again = {
        name
        for name, member in timed(settings.compressors, settings.ratios).items()
        if not ours(member)
    }
    known = {tuple(row) for row in kept[TIMED].itertuples(index=False, name=None)} - again
    results.stage("time")(0, 1)
    rows = timing_rows(
        results.opened,
        settings.compressors,
        ratios=settings.ratios,
        seed=settings.seed,
        known=known,
    )
    if rows or not results.holds("timings", key):
        kept = asked(kept, [*known], TIMED)
        new = pandas.DataFrame(rows)
        every = pandas.concat([kept, new], ignore_index=True) if len(kept) else new
        results.keep("timings", timing_table(every), key)


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
    members = _made(settings.compressors, (0.5,))
    if results.holds("equal_bits", key) and all(map(ours, members)):
        return
    table = frame([], EqualBitsRow)
    grad = last_finite(results.opened)
    if grad is not None:
        results.stage("equal bits")(0, 1)
        some = grad[:: -(-grad.numel() // MOST_ELEMENTS)].contiguous()
        chosen = {"ratios": settings.ratios, "seed": settings.seed}
        table = equal_bits(some, settings.compressors, **chosen)  # type: ignore[arg-type]
    results.keep("equal_bits", table, key)


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
    )
    results.keep("factorised", table, key)


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
