"""Jobs of a replay in several processes, which leave rows and states in the folder of parts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gradstats.kernels.forms import use
from gradstats.replaying.planning import Job, ours
from gradstats.replaying.run import replay_jobs
from gradstats.runs.run import Progress, Run
from gradstats.runs.tasks import in_order

SHARES = 4  # groups of jobs, of an executor whose number of workers is not known


@dataclass(frozen=True)
class Pass:
    """What the jobs of one pass over the rows have in common.

    Attributes:
        run: selects parameters and steps; a process opens the store itself.
        workers: that exchange their gradients.
        seed: of the random methods.
        deadline: of `time.monotonic`, which all processes of a machine share.
        folder: gets a file per job.
        kernels: form of the kernels.
    """

    run: Run
    workers: int
    seed: int
    deadline: float
    folder: Path
    kernels: str


def replay_ahead(
    one: Pass, jobs: Sequence[Job], executor: Executor, progress: Progress | None = None
) -> None:
    """Replay jobs as tasks; `replay_jobs` with the same folder then finds their rows there.

    Compressors of one's own are left out: their rows are not kept in files, and another process
    may be unable to import them.

    Args:
        one: what the jobs have in common.
        jobs: of one batch.
        executor: where the tasks run.
        progress: called with the number of groups that are done, and of all.
    """
    known = [job for job in jobs if ours(job.compressor) and not job.skipped]
    count = getattr(executor, "_max_workers", SHARES)  # few: each share reads every row once
    shares = [share for share in (known[first::count] for first in range(count)) if share]
    if progress:
        progress(0, len(shares))
    for done, _ in enumerate(in_order(partial(_replay_share, one), shares, executor), 1):
        if progress:
            progress(done, len(shares))


def _replay_share(one: Pass, jobs: Sequence[Job]) -> None:
    with use(one.kernels):
        replay_jobs(
            one.run,
            jobs,
            workers=one.workers,
            seed=one.seed,
            deadline=one.deadline,
            folder=one.folder,
            keep=True,
        )
