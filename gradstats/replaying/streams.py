"""Jobs of a replay on their way through the rows: kept on disk, so that they can continue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from gradstats.compressors import Compressor
from gradstats.compressors.states import plain, restored
from gradstats.replaying.folding import Given, Position, Row, advanced
from gradstats.replaying.planning import Job, ours
from gradstats.runs.parts import read_part, write_part


@dataclass
class Stream:
    """One job, its rows so far, and the memory of its compressor after them.

    Its file holds all three, so that a replay that continues gives the same rows bit for bit.

    Attributes:
        job: what runs.
        path: its file; None to keep nothing.
        rows: one per step that it has seen.
        position: the compressor's states after these rows.
        saved: states as the file has them, until the first gradient shows their form.
        written: number of rows in the file.
    """

    job: Job
    path: Path | None = None
    rows: list[Row] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    saved: list[Any] | None = None
    written: int = 0

    @classmethod
    def of(cls, job: Job, workers: int, folder: Path | None = None) -> Stream:
        """Begin a job, or continue it from its file in a folder.

        A compressor of one's own begins anew: its code may have changed.
        """
        if folder is None or not ours(job.compressor):
            return cls(job)
        path = _file(job, workers, folder)
        kept = read_part(path)
        if kept is None or kept["labels"] != _labels(job, workers):
            return cls(job, path)
        rows = kept["rows"]
        position = Position(len(rows), failed=kept["failed"])
        return cls(job, path, rows, position, kept["states"], len(rows))

    @property
    def compressor(self) -> Compressor:
        """The compressor that runs."""
        return self.job.compressor

    def advance(self, given: Given) -> None:
        """Run the next step; an interrupt leaves the stream as it was before it."""
        if self.saved is not None:
            pairs = zip(given.workers, self.saved, strict=True)
            states = [restored(self.compressor.init(grad), saved) for grad, saved in pairs]
            self.position = Position(self.position.done, states, self.position.failed)
            self.saved = None
        row, after = advanced(self.compressor, self.position, given)
        self.rows[self.position.done :] = [row]
        self.position = after

    def write(self, workers: int) -> None:
        """Write rows and states to its file, unless they are in it."""
        done = self.position.done
        if self.path is None or done == self.written:
            return
        states = self.saved
        if self.position.states is not None:
            states = [plain(state) for state in self.position.states]
        content = {
            "labels": _labels(self.job, workers),
            "rows": self.rows[:done],
            "states": states,
            "failed": self.position.failed,
        }
        write_part(self.path, content)
        self.written = done


def in_step_order(streams: Sequence[Stream]) -> list[tuple[Job, Row]]:
    """The rows of all streams as one pass makes them: step by step, in the order of the jobs."""
    longest = max((stream.position.done for stream in streams), default=0)
    return [
        (stream.job, stream.rows[index])
        for index in range(longest)
        for stream in streams
        if index < stream.position.done
    ]


def rows_done(streams: Sequence[Stream]) -> int:
    """How many rows the streams have."""
    return sum(stream.position.done for stream in streams)


def write(streams: Sequence[Stream], workers: int) -> None:
    """Write what is not in the files yet."""
    for stream in streams:
        stream.write(workers)


def rows_kept(jobs: Iterable[Job], workers: int, folder: Path) -> int:
    """How many rows of the jobs are in their files."""
    return sum(Stream.of(job, workers, folder).position.done for job in jobs)


def forget(jobs: Iterable[Job], workers: int, folder: Path) -> bool:
    """Remove the files of jobs whose rows are in the table; return whether no file is left."""
    for job in jobs:
        _file(job, workers, folder).unlink(missing_ok=True)
    return not any(folder.glob("*.stream"))


def _labels(job: Job, workers: int) -> str:
    return json.dumps({**job.labels, "workers": workers})


def _file(job: Job, workers: int, folder: Path) -> Path:
    name = sha256(_labels(job, workers).encode()).hexdigest()[:16]
    return folder / f"{name}.stream"
