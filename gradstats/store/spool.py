"""Writing to an object store.

Rows go to a local folder first, and are sent when it can be reached.

The folder is written like any store and never waits for the network. A thread sends what was
committed: chunks first, whole ones, then the worker's zarr.json, whose arrival is the commit there
too. Each object is put only if none exists, or over the object that this writer saw last; a writer
that takes over commits that first, so that a late writer changes nothing. Nothing is ever listed.
Chunks of rows that have arrived are deleted from the folder; rows that have not arrived, because
the connection or the process died, stay for the next writer of that address on this machine, or
for `gradstats copy`.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial

from gradstats.store.chunks import (
    documents_of,
    grown_chunks,
    is_a_row,
    is_finished,
    stamped,
    start_of_last,
    without_rows,
)
from gradstats.store.files import replace_file, take_lock
from gradstats.store.layout import PREFIXES, Document, encode, stream_rows
from gradstats.store.objects import CONFLICT, REPLACED, Conflict, InObjects, in_lanes
from gradstats.store.spool_folder import (
    address,
    check_run,
    discard,
    leave_spool,
    make_spool,
    settled,
    spool_folder,
    spool_lock,
)

__all__ = ["Spool", "address", "leave_spool", "make_spool", "spool_folder"]

#: Seconds between two tries, and for how long closing goes on trying without success.
RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
#: How often to look again where another writer commits meanwhile.
TRIES = 9


class Spool:
    """The rows of one worker on their way to an object store.

    Excludes other writers on this machine.

    Args:
        place: the store.
        root: its zarr.json, as this process knows it.
        worker: the data-parallel worker.

    Attributes:
        fault: why rows are waiting; "" if nothing is wrong.

    Raises:
        BlockingIOError: another process of this machine writes this worker.
        Conflict: the run has been replaced.
        OSError: the object store does not answer.
        ValueError: rows in the folder were never sent, and another writer has since written to the
            object store.
    """

    def __init__(self, place: InObjects, root: bytes, worker: int) -> None:
        self._store, self._root = place, root
        self._id = json.loads(root)["attributes"].get("run")
        self.place = place / f"worker_{worker}"
        self.fault = ""
        self._raw = self._trying = b""  # the commit that arrived last, and the one on its way
        self._sent: Mapping[str, Document] = {}
        self._tag: str | None = None
        self._begun = False  # the group there is of this run
        self._tags: dict[str, str | None] = {}  # of chunks there that may grow
        self._arrived: set[str] = set()  # chunks that did since then
        self._wake, self._closing = threading.Event(), threading.Event()
        self._moved = 0.0  # when something arrived last
        with spool_lock(place):  # else the folder might be left and removed in between
            folder = settled(place, root)
            self.folder = folder / f"worker_{worker}"
            self._lock_file = folder / f"worker_{worker}.lock"
            self._lock = take_lock(self._lock_file, str(self.place))
        try:
            self.mark = self._agree()
        except BaseException:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="gradstats-sender", daemon=True)

    def start(self) -> None:
        """Begin to send; called when the folder has its writer."""
        self._thread.start()
        self.wake()

    @property
    def marks(self) -> Document:
        """Attributes of the worker's group: which folder sends its rows, and the run."""
        return {"spool": self.mark, **({"run": self._id} if self._id else {})}

    def wake(self) -> None:
        """Report that rows were committed."""
        self._wake.set()

    @property
    def unsent(self) -> int:
        """The number of rows that were committed in the folder and have not arrived."""
        group = self.folder / "zarr.json"
        if not group.exists():
            return 0
        local = documents_of(group.read_bytes())
        return sum(stream_rows(local, p) - stream_rows(self._sent, p) for p in PREFIXES.values())

    def close(self) -> None:
        """Send the rest, as long as requests succeed and for a limited time after that."""
        if self._lock.closed:
            return
        if self._thread.ident is not None:
            self._moved = time.monotonic()
            self._closing.set()
            self.wake()
            self._thread.join()
            if not self.fault:
                discard(self.folder)
        self._let_go()

    def _let_go(self) -> None:
        with spool_lock(self._store):  # whoever has opened the file would lock one that is gone
            self._lock_file.unlink(missing_ok=True)
            self._lock.close()

    def _agree(self) -> str:
        """Compare folder and object store; return the mark that commits from this folder carry."""
        for _ in range(TRIES):
            with contextlib.suppress(Conflict):  # another writer's commit: look again
                return self._agreed()
        return self._agreed()

    def _agreed(self) -> str:
        file = self.folder / "zarr.json"
        local = json.loads(file.read_bytes()) if file.is_file() else None
        own = (local and _mark(local)) or uuid.uuid4().hex
        try:
            self._raw, self._tag = (self.place / "zarr.json").read_tagged()
        except FileNotFoundError:
            return own
        remote = json.loads(self._raw)
        if remote["attributes"].get("run", self._id) != self._id:
            return own  # left by a writer of the run that was replaced
        self._sent, self._begun = documents_of(self._raw), True
        if local is not None and _mark(local) == _mark(remote):
            return own
        if local is not None and self.unsent > 0:
            fact = (
                f"rows in {self.folder} were never sent, and another writer has been there since"
            )
            raise ValueError(
                f"cannot go on in {self.place}: {fact}; move it away to go on without"
            )
        discard(self.folder)
        return self._take_over(remote)

    def _take_over(self, group: Document) -> str:
        """Commit as the writer, and download the chunks that appending needs.

        The commit comes first: from then on the previous writer commits nothing, however late.
            Appending needs the last chunk of each column, and all chunks of arrays that never
            grow.
        """
        mark = uuid.uuid4().hex
        marked = encode({**group, "attributes": {**group["attributes"], "spool": mark}})
        self._tag = (self.place / "zarr.json").put_over(marked, self._tag)
        self._raw = marked
        arrays = {key: d for key, d in self._sent.items() if d["node_type"] == "array"}
        for key in arrays:
            (self.folder / key).mkdir(parents=True, exist_ok=True)
        for chunk in grown_chunks(arrays, {key: start_of_last(d) for key, d in arrays.items()}):
            data, self._tags[chunk] = (self.place / chunk).read_tagged()
            replace_file(self.folder / chunk, data)
        replace_file(self.folder / "zarr.json", marked)
        return mark

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                self._send()
                if closing:
                    self._send_copies()
                    return
            except Conflict as error:
                self.fault = str(error)
                return
            except Exception as error:
                self.fault = str(error) or type(error).__name__
                if closing and time.monotonic() - self._moved > PATIENCE_SECONDS:
                    return
                time.sleep(1) if closing else self._closing.wait(RETRY_SECONDS)
                self._wake.set()

    def _send(self) -> None:
        """Send what was committed since the last time."""
        raw = (self.folder / "zarr.json").read_bytes()
        documents = documents_of(raw)
        if raw != self._raw:
            self._check_ours() if self._begun else self._begin(raw)
            lengths = {k: d["shape"][0] for k, d in self._sent.items() if "shape" in d}
            chunks = list(grown_chunks(documents, lengths))
            rows = {c for c in chunks if is_a_row(documents[c.rpartition("/")[0]])}
            todo = [c for c in chunks if c not in self._arrived & rows]
            in_lanes(partial(self._put_chunk, documents), todo)
            self._trying = raw
            self._tag = (self.place / "zarr.json").put_over(raw, self._tag)
            self._raw, self._sent, self._arrived = raw, documents, set()
            done = [c for c in chunks if is_finished(c, documents[c.rpartition("/")[0]])]
            for chunk in done:
                (self.folder / chunk).unlink(missing_ok=True)
        self.fault = ""

    def _begin(self, raw: bytes) -> None:
        """Commit without new rows before any chunk is put, so that nobody else commits rows."""
        check_run(self._store, self._root)
        empty = without_rows(raw)
        self._tag = (self.place / "zarr.json").put_over(empty, self._tag)
        self._raw, self._sent, self._begun = empty, documents_of(empty), True

    def _check_ours(self) -> None:
        """Check that no other writer has written to the object store."""
        group = self.place / "zarr.json"
        if group.tag() == self._tag:
            return
        try:
            raw, tag = group.read_tagged()
        except FileNotFoundError:
            raise Conflict(f"cannot write {self.place}: {REPLACED}") from None
        if raw != self._trying:  # else it arrived, and only the answer did not
            raise Conflict(f"cannot write {self.place}: {CONFLICT}")
        self._raw, self._sent, self._tag = raw, documents_of(raw), tag

    async def _put_chunk(self, documents: Mapping[str, Document], name: str) -> None:
        """Put a chunk where there is none, or over the one that was seen there last."""
        document = documents[name.rpartition("/")[0]]
        data = stamped(name, (self.folder / name).read_bytes(), document, self.mark)
        place = self.place / name
        try:
            tag = await place.put_over_async(data, self._tags.get(name))
        except Conflict:
            # a chunk of no row, of whoever was here before; or another's, and a row by now. Its
            # tag is asked for first: what is put there after the check is not put over
            seen = place.tag()
            self._check_ours()
            try:
                tag = await place.put_over_async(data, seen)
            except Conflict as error:  # the one before was late, and has now seen who writes
                raise OSError(str(error)) from error
        if not is_a_row(document):
            self._tags[name] = tag
        self._moved = time.monotonic()
        self._arrived.add(name)

    def _send_copies(self) -> None:
        """Send the metadata of arrays, for readers that open one of them."""
        names = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*/zarr.json")]
        seen: dict[str, str | None] = {}
        in_lanes(partial(self._look, seen), names)
        with contextlib.suppress(Conflict):  # then they are for the other writer to send
            self._check_ours()
            in_lanes(partial(self._put_copy, seen), names)

    async def _look(self, seen: dict[str, str | None], name: str) -> None:
        seen[name] = await (self.place / name).tag_async()

    async def _put_copy(self, seen: Mapping[str, str | None], name: str) -> None:
        await (self.place / name).put_over_async((self.folder / name).read_bytes(), seen[name])
        self._moved = time.monotonic()


def _mark(group: Document) -> str | None:
    """Return the spool that a commit came from."""
    mark: str | None = group["attributes"].get("spool")
    return mark
