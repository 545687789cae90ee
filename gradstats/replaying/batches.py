"""What a replay is asked for: batches of jobs, and the rows of the table that belong to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gradstats.kernels.forms import form
from gradstats.replaying.planning import Job, plan
from gradstats.replaying.settings import ReplaySettings
from gradstats.runs import Run
from gradstats.runs.tables import Row, Table

KEY = ["compressor", "feedback", "granularity", "dense", "rows", "workers"]
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
        return [list(self.key(job)) for job in self.jobs(run)]

    def jobs(self, run: Run) -> list[Job]:
        """The jobs of all batches, each once."""
        jobs = [job for _, batch in self.batches(run) for job in batch]
        return list({self.key(job): job for job in jobs}.values())

    def key(self, job: Job) -> tuple[Any, ...]:
        """What names the rows of a job."""
        return key_of({**job.labels, "workers": self.settings.workers})


def key_of(row: Row) -> tuple[Any, ...]:
    """What names the rows of a job, of one of them."""
    return tuple(row[name] for name in KEY)


def asked(table: Table, keys: Sequence[Sequence[Any]], columns: Sequence[str] = KEY) -> Table:
    """The rows of a table that `keys` name."""
    if not len(table):
        return table
    wanted = {tuple(key) for key in keys}
    rows = table[list(columns)].itertuples(index=False, name=None)
    return table[[row in wanted for row in rows]].reset_index(drop=True)
