"""GradientStore: per-iteration gradients of one run, in a Zarr v3 group (docs/format.md)."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from gradstats.settings import lists_settings
from gradstats.store.addresses import as_place
from gradstats.store.claims import Claims
from gradstats.store.files import held, lock_files, take_lock
from gradstats.store.groups import check_worker, worker_ids
from gradstats.store.layout import (
    BLOBS,
    FEATURES,
    PREFIXES,
    SHARED_CHUNKS,
    Document,
    StoreFormatError,
    check_kind,
)
from gradstats.store.objects import REPLACED, Conflict, InObjects
from gradstats.store.opening import open_stream
from gradstats.store.parameters import (
    Parameter,
    parameter_table,
    table_difference,
    table_from_json,
    table_to_json,
)
from gradstats.store.places import Place
from gradstats.store.root import (
    adopted,
    change_root,
    is_vacant,
    make_root,
    read_root,
    remove_root,
    root_bytes,
)
from gradstats.store.rows import Array, Coordinates, Row, as_tensor, check_ids, pack
from gradstats.store.spool_folder import make_spool, settled, spool_lock
from gradstats.store.stored import Stored
from gradstats.store.writing import WorkerWriter


class GradientStore(Stored):
    """A store of gradients, one group of rows per worker; crash-safe to append to, lazy to read.

    A row is stored completely or not at all: a process killed at any instant leaves every
        completed row bit-exact. Use `create` or `open`, never the constructor.

    A store in an object store (`s3://...`) is written through a local folder, so that nothing
    waits for the network; readers see a row when it has arrived (store/spool.py).

    Attributes:
        path: the folder, zip file or URL of the store.
        folder: the local folder in which this process writes: `path` itself, or a folder from
            which rows are sent to the object store.
        run: the name of the run, which differs from that of a store that later replaces it; None
            in stores of earlier versions.
        fresh: whether this object created the store where nothing existed.

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/run.zarr"
        >>> with GradientStore.create(path) as store:
        ...     store.append(0, {"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
        >>> GradientStore.open(path).stream().read(0)
        tensor([1., 1., 1., 1., 0., 0.])
    """

    def __init__(self, path: Path | Place, mode: str, attributes: Document) -> None:
        super().__init__(path, mode, attributes)
        self.fresh = False
        self._features = tuple(attributes["features"])
        self.folder = self._prepared() if mode == "a" else Path(str(path))
        self._claims = Claims(path, self.folder)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | Place,
        parameters: Sequence[Parameter] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
        run: str | None = None,
        if_exists: str = "error",
    ) -> Self:
        """Create a store and open it for appending.

        Args:
            path: the folder, by custom NAME.zarr, whose parents are created; or a URL.
            parameters: see `parameter_table`; None takes the table of the first row appended.
            provenance: JSON that describes where the gradients come from, without secrets.
            run: the name of the run; None draws one.
            if_exists: "error"; "resume" opens the store at `path` (its provenance stays) if it has
                the same table; "overwrite" deletes what the store at `path` holds.

        Raises:
            FileExistsError: something is at `path`.
            ValueError: the store to resume has another table.
            StoreFormatError: the path to resume or overwrite is not a gradstats store.
            BlockingIOError: the store to overwrite is being written.
            OSError: the object store of a URL does not answer.
        """
        place = as_place(path)
        root = root_bytes(parameters or (), provenance or {}, run or uuid.uuid4().hex)
        vacant = is_vacant(place)
        if make_root(place, root, if_exists):
            store = cls.open(place, "a")
            store.fresh = vacant
            return store
        store = cls.open(place, "a")
        store._resume(tuple(parameters or ()))
        return store

    def _resume(self, parameters: tuple[Parameter, ...]) -> None:
        if parameters and not self.parameters:
            self._adopt(parameters)
        difference = parameters and table_difference(self.parameters, parameters)
        if difference:
            raise ValueError(f"cannot resume {self.path}: {difference}; write to another path")
        if set(self._features) != set(FEATURES):
            change_root(self.path, self.run, lambda _: self._root)
            self._features = FEATURES

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Place, mode: str = "r") -> Self:
        """Open a store to read (`"r"`) or to append as well (`"a"`).

        Args:
            path: a folder, a URL or, to read, a zip file of a store.
            mode: `"r"` or `"a"`.

        Raises:
            StoreFormatError: nothing is at the path, or no gradstats store, a newer one, or a
                damaged one.
        """
        if mode not in ("r", "a"):
            raise ValueError(f"mode must be 'r' or 'a', got {mode!r}")
        place = as_place(path)
        attributes = read_root(place)
        unknown = sorted(set(attributes["features"]) - set(FEATURES))
        if mode == "a" and unknown:
            fact = f"it uses features this version does not write: {', '.join(unknown)}"
            raise StoreFormatError(f"cannot append to {path}: {fact}; upgrade gradstats")
        store = cls(place, mode, attributes)
        for worker in store.workers:
            check_worker(place, worker)
        return store

    def _prepared(self) -> Path:
        """Return the folder to write in."""
        if isinstance(self.path, Path):
            return self.path
        if not isinstance(self.path, InObjects):
            raise ValueError(f"cannot write {self.path}: zip files are read only; copy it first")
        return make_spool(self.path, self._root)

    @property
    def _root(self) -> bytes:
        return root_bytes(self.parameters, self.provenance, self.run)

    @lists_settings(Coordinates)
    def append(
        self,
        step: int,
        grads: Mapping[str, Array],
        worker: int = 0,
        *,
        weights: Mapping[str, Array] | None = None,
        **coordinates: Unpack[Coordinates],
    ) -> None:
        """Append one row: the gradients of one worker at one step.

        Args:
            step: number of the optimizer step; larger than the step before in the same segment.
            grads: gradients by parameter name, tensors or arrays on any device. Shape and dtype
                must be those of the store's table of parameters; the first row of a store without
                a table defines it. A parameter that is not in `grads` has no gradient in this row.
            worker: number of the data-parallel worker.
            weights: values of the parameters by name; if one row has them, all must.
            **coordinates: facts about the row: micro_step, segment (number of the process start),
                point (where in the step: "local", "reduced", "clipped"), loss, learning_rate,
                grad_norm, loss_scale, unscaled (1 if the loss scale is divided out), skipped,
                clip_norm, clip_coefficient, world_size, step_seconds, inner_steps. What is not
                given is stored as unknown; docs/format.md describes each.

        Raises:
            ValueError: a name, shape, dtype, step or coordinate that the store cannot hold.
            BlockingIOError: another process writes rows of this worker.
        """
        self._check_writable()
        if not self.parameters:
            tensors = {name: as_tensor(name, value) for name, value in grads.items()}
            self._adopt(parameter_table((n, t.shape, t.dtype) for n, t in tensors.items()))
        flat, present = pack(grads, self.parameters)
        weights_flat = pack(weights, self.parameters)[0] if weights is not None else None
        self.append_rows([Row(step, flat, present, {**coordinates}, weights_flat)], worker)

    def append_rows(self, rows: Sequence[Row], worker: int = 0, kind: str = "full") -> None:
        """Append rows that have the layout of the store already, in one commit.

        All of them or none.
        """
        check_kind(kind)
        if rows:
            self._writer(worker)
            self._claims.append(worker, kind, rows)

    def set_track(self, element_ids: Mapping[str, Any], worker: int = 0) -> None:
        """Declare the tracked elements, once and before the first tracked row.

        Args:
            element_ids: by dtype name, sorted int64 indices into the flat array of that dtype.
            worker: the data-parallel worker.

        Raises:
            ValueError: ids are out of range or order, or the store tracks other ids already.
        """
        writer = self._writer(worker)
        ids = {d: np.ascontiguousarray(v, np.int64) for d, v in element_ids.items()}
        for dtype, places in ids.items():
            check_ids(dtype, places, writer.row_widths)
        if "track" not in writer.documents:
            writer.set_track(ids)
            return
        stored = open_stream(self.folder, worker, "track", self.parameters).element_ids or {}
        same = set(stored) == set(ids) and all(np.array_equal(stored[d], ids[d]) for d in ids)
        if not same:
            fact = f"worker {worker} tracks other elements already"
            raise ValueError(f"cannot track these elements in {self.path}: {fact}; use those")

    def add_stream(self, kind: str, worker: int = 0) -> None:
        """Declare rows of bytes, `"summary"` or `"shadow"`, unless they are declared already.

        Raises:
            ValueError: rows of this kind are not bytes.
        """
        if kind not in BLOBS:
            raise ValueError(f"kind must be one of {', '.join(BLOBS)}, got {kind!r}")
        self._writer(worker).add_stream(kind)

    def table(self, worker: int) -> tuple[Parameter, ...]:
        """Return the parameter table of a worker that this process writes."""
        return self._claims.writers[worker].table

    def last_segment(self) -> int:
        """Return the highest segment of any row, stored or still to be sent.

        -1 if there is none.
        """
        last = [-1]
        for place in {self.path, self.folder}:
            for worker, kind in product(worker_ids(place, self.run), PREFIXES):
                with contextlib.suppress(LookupError):
                    stream = open_stream(place, worker, kind, self.parameters)
                    last += [int(np.asarray(stream.arrays["segment"][-1]))] if len(stream) else []
        return max(last)

    def check_idle(self) -> None:
        """Check that nobody writes any worker.

        Raises:
            BlockingIOError: another process writes.
        """
        with self._settled:
            for lock in lock_files(self.folder):
                take_lock(lock, str(self.path)).close()

    @property
    def _settled(self) -> AbstractContextManager[None]:
        """Keep other processes from removing the folder to write in."""
        return spool_lock(self.path) if isinstance(self.path, InObjects) else nullcontext()

    def claim(self, worker: int = 0, table: Sequence[Parameter] | None = None) -> None:
        """Become the writer of a worker now, before its first row, and remove leftovers.

        Args:
            worker: the data-parallel worker.
            table: the worker's own table, if it holds a shard of each parameter.

        Raises:
            BlockingIOError: another process writes this worker.
            OSError: another run has replaced this one.
            ValueError: the worker's stored rows have another table.
        """
        self._check_writable()
        if read_root(self.path).get("run") != self.run:
            raise Conflict(f"cannot write {self.path}: {REPLACED}")
        own = tuple(table) if table is not None else self.parameters
        marks: Document = {}
        if own != self.parameters:
            marks["parameters"] = table_to_json(own)
        shared = SHARED_CHUNKS in self._features
        writer = self._claims.add(worker, own, marks, self._root, shared=shared)
        stored = table_from_json(writer.attributes.get("parameters", ())) or self.parameters
        difference = table_difference(stored, own)
        if difference:
            self._claims.drop(worker)
            fact = f"cannot resume worker {worker} of {self.path}: {difference}"
            raise ValueError(f"{fact}; write to another path")
        self._claims.start(worker)

    @property
    def claimed(self) -> tuple[int, ...]:
        """The workers that this process writes."""
        return tuple(self._claims.writers)

    @property
    def fault(self) -> str:
        """Why rows wait on this machine instead of being in the object store.

        "" if nothing is wrong.
        """
        return next(filter(None, (spool.fault for spool in self._claims.spools.values())), "")

    @property
    def unsent(self) -> int:
        """The number of rows that have not arrived in the object store."""
        return sum(spool.unsent for spool in self._claims.spools.values())

    def _writer(self, worker: int) -> WorkerWriter:
        self._check_writable()
        if not self.parameters:
            raise ValueError(f"cannot write {self.path}: it has no parameter table; append first")
        if worker not in self.claimed:
            self.claim(worker)
        return self._claims.writers[worker]

    def close(self) -> None:
        """Release the store to other writers.

        For an object store, after all rows were sent or a minute failed.

        In a folder rows are committed as they are appended, so nothing is pending.
        """
        self._claims.close()

    def remove(self) -> None:
        """Delete the store and close it. If another run has replaced it, only close it.

        A store in a folder is deleted while its locks are held.

        Raises:
            ValueError: it is in a zip file.
        """
        if isinstance(self.path, Path) and self._is_there:
            shutil.rmtree(self.path)
        self.close()
        if not isinstance(self.path, Path) and self._is_there:
            remove_root(self.path)

    @property
    def _is_there(self) -> bool:
        """Whether the store at the path is still of this run."""
        with contextlib.suppress(StoreFormatError):
            return read_root(self.path).get("run") == self.run
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_writable(self) -> None:
        if self.mode != "a":
            raise ValueError(f"cannot write {self.path}: opened to read; open it with mode='a'")

    def _adopt(self, table: tuple[Parameter, ...]) -> None:
        """Give the store this table, unless another worker gave it one first."""
        # Zarr warns about files it does not know, and one table is enough
        with self._settled if self.folder != self.path else held(self.folder / ".lock"):
            self.parameters = adopted(self.path, self.run, self.provenance, table)
            if isinstance(self.path, InObjects):
                settled(self.path, self._root)
