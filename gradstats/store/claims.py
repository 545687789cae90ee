"""The workers that one process writes: the writer of each, and what sends its rows."""

from collections.abc import Sequence
from pathlib import Path

from gradstats.store.layout import Document
from gradstats.store.objects import InObjects
from gradstats.store.parameters import Parameter
from gradstats.store.places import Place
from gradstats.store.rows import Row
from gradstats.store.spool import Spool
from gradstats.store.spool_folder import leave_spool
from gradstats.store.writing import WorkerWriter

#: So many workers of one process keep files open, which saves them time.
FEW = 8


class Claims:
    """Writers of workers, which exclude those of other processes.

    Args:
        place: the store.
        folder: the folder to write in.

    Attributes:
        writers: by worker.
        spools: of rows on their way to an object store, by worker.
    """

    def __init__(self, place: Path | Place, folder: Path) -> None:
        self._place, self._folder = place, folder
        self.writers: dict[int, WorkerWriter] = {}
        self.spools: dict[int, Spool] = {}

    def add(
        self,
        worker: int,
        table: Sequence[Parameter],
        marks: Document,
        root: bytes,
        *,
        shared: bool,
    ) -> WorkerWriter:
        """Become the writer of a worker.

        Args:
            worker: the data-parallel worker.
            table: the parameters as its rows lay them out.
            marks: attributes of its group.
            root: the zarr.json of the store.
            shared: whether small rows share chunks; never in an object store, where a chunk that
                grows would be sent again with each of its rows.

        Raises:
            BlockingIOError: another process writes this worker.
        """
        if isinstance(self._place, InObjects):
            spool = self.spools[worker] = Spool(self._place, root, worker)
            marks, shared = {**marks, **spool.marks}, False
        writer = WorkerWriter(self._folder, worker, table, marks, shared=shared)
        self.writers[worker] = writer
        return writer

    def start(self, worker: int) -> None:
        """Begin to send the rows of a worker, if they go to an object store."""
        if worker in self.spools:
            self.spools[worker].start()

    def drop(self, worker: int) -> None:
        """Let another process write this worker."""
        self.writers.pop(worker).close()

    def append(self, worker: int, kind: str, rows: Sequence[Row]) -> None:
        """Commit rows of a worker, all of them or none."""
        self.writers[worker].append(kind, rows)
        if len(self.writers) > FEW:
            self.writers[worker].rest()
        if worker in self.spools:
            self.spools[worker].wake()

    def close(self) -> None:
        """Let other processes write, after all rows were sent or a minute failed."""
        for writer in self.writers.values():
            writer.close()
        for spool in self.spools.values():
            spool.close()
        if self.spools and isinstance(self._place, InObjects):
            leave_spool(self._place)
        self.writers.clear()
