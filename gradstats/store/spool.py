"""Writing to an object store: rows go to a local folder, and from there while it can be reached.

The folder is written like any store and never waits for the network. A thread sends what was
committed: chunks first, whole ones, then the worker's zarr.json, whose arrival is the commit there
too, and which is only put over the one that this writer put before. Nothing is ever listed. Chunks
of rows that have arrived are deleted here; what has not, because the connection or the process
died, stays for the next writer of that place on this machine, or for `gradstats copy`.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from gradstats.store.files import replace_file, take_lock
from gradstats.store.layout import (
    PREFIXES,
    Document,
    chunk_shape,
    encode,
    has_rows,
    stream_rows,
)
from gradstats.store.objects import CONFLICT, Conflict, InObjects

#: Requests at a time.
LANES = 8
#: Seconds between two tries, and for how long closing goes on trying without success.
RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 60.0

_ADDRESS = "sent-to"  # the file in a spool that says where its rows go


def spool_folder(place: InObjects) -> Path:
    """The folder of rows on their way: below `GRADSTATS_SPOOL` or the temporary folder."""
    user = f"gradstats-{os.getuid() if hasattr(os, 'getuid') else 'spool'}"
    base = os.environ.get("GRADSTATS_SPOOL") or Path(tempfile.gettempdir(), user)
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    return Path(base, f"{place.name}-{digest}")


def make_spool(place: InObjects, root: bytes) -> Path:
    """Make the folder, a store by itself but for the rows that have arrived.

    What lies in it of another run, which has been replaced since, goes.
    """
    folder = spool_folder(place)
    old = folder / "zarr.json"
    if old.is_file() and _provenance(old.read_bytes()) != _provenance(root):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "zarr.json", root)
    replace_file(folder / _ADDRESS, str(place).encode())
    return folder


def leave_spool(folder: Path) -> None:
    """Remove the folder, unless a worker still has rows or a writer there."""
    with contextlib.suppress(OSError):
        if not any(child.name.startswith("worker_") for child in folder.iterdir()):
            shutil.rmtree(folder)


def address(folder: Path) -> str | None:
    """Where the rows of a spool go; None for any other folder."""
    file = folder / _ADDRESS
    return file.read_text() if file.is_file() else None


class Spool:
    """What one worker has written and not all sent; nobody else on this machine while it lives.

    Args:
        root: the spool's folder.
        place: the store.
        worker: the data-parallel worker.

    Attributes:
        fault: why rows are waiting, "" where nothing is wrong.

    Raises:
        BlockingIOError: another process of this machine writes this worker.
        OSError: the object store does not answer.
        ValueError: rows here were never sent, and another writer has written there since.
    """

    def __init__(self, root: Path, place: InObjects, worker: int) -> None:
        self.folder = root / f"worker_{worker}"
        self.place = place / f"worker_{worker}"
        self.fault = ""
        self._raw = self._trying = b""  # the commit that arrived last, and the one on its way
        self._sent: Mapping[str, Document] = {}
        self._tag: str | None = None
        self._arrived: set[str] = set()  # chunks that did since then
        self._wake, self._closing = threading.Event(), threading.Event()
        self._moved = 0.0  # when something arrived last
        self._lock_file = root / f"worker_{worker}.lock"
        self._lock = take_lock(self._lock_file, str(self.place))
        try:
            self.mark = self._agree()
        except BaseException:
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._run, name="gradstats-sender", daemon=True)

    def start(self) -> None:
        """Begin to send, once the folder has its writer."""
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Something was committed."""
        self._wake.set()

    @property
    def unsent(self) -> int:
        """Rows that were committed here and have not arrived."""
        group = self.folder / "zarr.json"
        if not group.exists():
            return 0
        here = _documents(group.read_bytes())
        return sum(stream_rows(here, p) - stream_rows(self._sent, p) for p in PREFIXES.values())

    def close(self) -> None:
        """Send the rest, for as long as that works or the patience lasts."""
        if self._lock.closed:
            return
        if self._thread.ident is not None:
            self._moved = time.monotonic()
            self._closing.set()
            self.wake()
            self._thread.join()
            if not self.fault:
                _discard(self.folder)
        self._lock_file.unlink(missing_ok=True)
        self._lock.close()

    # --- before the writer begins ---

    def _agree(self) -> str:
        """Bring folder and object store together; return the mark that commits from here carry."""
        here = self.folder / "zarr.json"
        local = json.loads(here.read_bytes()) if here.is_file() else None
        try:
            self._raw, self._tag = (self.place / "zarr.json").read_tagged()
        except FileNotFoundError:
            return (local and _mark(local)) or uuid.uuid4().hex
        there, self._sent = json.loads(self._raw), _documents(self._raw)
        if local is not None and _mark(local) == _mark(there):
            return _mark(there) or ""
        if local is not None and self.unsent > 0:
            fact = (
                f"rows in {self.folder} were never sent, and another writer has been there since"
            )
            raise ValueError(
                f"cannot go on in {self.place}: {fact}; move it away to go on without"
            )
        _discard(self.folder)
        return self._fetch(there)

    def _fetch(self, group: Document) -> str:
        """Get what appending needs: the last chunk of columns, and all of what never grows."""
        arrays = {key: d for key, d in self._sent.items() if d["node_type"] == "array"}
        for key in arrays:
            (self.folder / key).mkdir(parents=True, exist_ok=True)
        for chunk in _chunks(arrays, {key: _start_of_last(d) for key, d in arrays.items()}):
            replace_file(self.folder / chunk, (self.place / chunk).read_bytes())
        mark = uuid.uuid4().hex
        marked = {**group, "attributes": {**group["attributes"], "spool": mark}}
        replace_file(self.folder / "zarr.json", encode(marked))
        return mark

    # --- the thread ---

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
        documents = _documents(raw)
        if raw != self._raw:
            self._check_ours()
            lengths = {k: d["shape"][0] for k, d in self._sent.items() if "shape" in d}
            chunks = list(_chunks(documents, lengths))
            rows = {c for c in chunks if _is_a_row(documents[c.rpartition("/")[0]])}
            self._put_all(c for c in chunks if c not in self._arrived & rows)
            self._trying = raw
            self._tag = (self.place / "zarr.json").put_over(raw, self._tag)
            self._raw, self._sent, self._arrived = raw, documents, set()
            for chunk in rows:
                (self.folder / chunk).unlink(missing_ok=True)
        self.fault = ""

    def _check_ours(self) -> None:
        """Check that nobody else has written there, before any chunk is touched."""
        group = self.place / "zarr.json"
        if group.tag() == self._tag:
            return
        raw, tag = group.read_tagged()
        if raw != self._trying:  # else it arrived, and only the answer did not
            raise Conflict(f"cannot write {self.place}: {CONFLICT}")
        self._raw, self._sent, self._tag = raw, _documents(raw), tag

    def _send_copies(self) -> None:
        """Send the metadata of arrays, for readers that open one of them."""
        self._put_all(str(f.relative_to(self.folder)) for f in self.folder.rglob("*/zarr.json"))

    def _put_all(self, names: Iterable[str]) -> None:
        # by asyncio: a recording that is closed as Python ends could start no thread any more
        async def put_all() -> None:
            lanes = asyncio.Semaphore(LANES)

            async def put(name: str) -> None:
                async with lanes:
                    await (self.place / name).put_async(self.folder / name)
                self._moved = time.monotonic()
                self._arrived.add(name)

            await asyncio.gather(*map(put, names))

        asyncio.run(put_all())


def _discard(folder: Path) -> None:
    """Remove a worker's folder; a kill meanwhile leaves nothing that looks like one."""
    gone = folder.with_name(f"gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _provenance(root: bytes) -> Any:
    return json.loads(root)["attributes"]["provenance"]


def _mark(group: Document) -> str | None:
    """Which spool a commit came from."""
    mark: str | None = group["attributes"].get("spool")
    return mark


def _documents(raw: bytes) -> Mapping[str, Document]:
    documents: Mapping[str, Document] = json.loads(raw)["consolidated_metadata"]["metadata"]
    return documents


def _chunks(documents: Mapping[str, Document], lengths: Mapping[str, int]) -> Iterator[str]:
    """The chunks of arrays that have grown from these lengths, by key."""
    for key, document in documents.items():
        first = lengths.get(key, 0)
        if document["node_type"] != "array" or first >= document["shape"][0]:
            continue
        rows, *others = zip(document["shape"], chunk_shape(document), strict=True)
        leading = range(first // rows[1], -(-rows[0] // rows[1]))
        for index in product(leading, *(range(-(-length // size)) for length, size in others)):
            yield f"{key}/{'.'.join(['c', *map(str, index)])}"


def _is_a_row(document: Document) -> bool:
    """Is a chunk of this array a part of one row, which nothing is added to?"""
    return has_rows(document) and chunk_shape(document)[0] == 1


def _start_of_last(document: Document) -> int:
    """Where the last chunk of an array begins; past the end where a row is a chunk."""
    length, size = document["shape"][0], chunk_shape(document)[0]
    if not has_rows(document) and not document["dimension_names"][0].startswith("item_"):
        return 0
    return int(length if size == 1 else max(0, length - 1) // size * size)
