"""A store as its readers see it: who wrote, and the rows that are committed by now."""

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Any

from gradstats.store.files import taken_by
from gradstats.store.groups import worker_ids
from gradstats.store.layout import Document, check_kind
from gradstats.store.opening import open_stream
from gradstats.store.parameters import table_from_json
from gradstats.store.places import Place
from gradstats.store.reading import Stream


class Stored:
    """What can be read of a store.

    Args:
        path: the folder, zip file or URL of the store.
        mode: "r", or "a" if this process may append.
        attributes: those of the root.

    Attributes:
        parameters: the table of parameters; () before the first row.
        provenance: JSON that describes where the gradients come from.
        run: the name of the run; None in stores of earlier versions.
    """

    def __init__(self, path: Path | Place, mode: str, attributes: Document) -> None:
        self.path = path
        self.mode = mode
        self.parameters = table_from_json(attributes["parameters"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.run: str | None = attributes.get("run")

    @property
    def workers(self) -> tuple[int, ...]:
        """The workers that have written, in order; an object store is asked only once."""
        if isinstance(self.path, Path) or self.mode == "a":
            return worker_ids(self.path, self.run)
        return self._workers_once

    @cached_property
    def _workers_once(self) -> tuple[int, ...]:
        return worker_ids(self.path, self.run)

    @property
    def nbytes(self) -> int:
        """The number of bytes stored (walks the folder, or lists the objects).

        Of a file, without the zeros that stand for rows to come and take no disk yet.
        """
        if not isinstance(self.path, Path):
            return self.path.size()
        total = 0
        for file in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another worker writes and renames
                total += taken_by(file) if file.is_file() else 0
        return total

    def stream(self, worker: int = 0, kind: str = "full") -> Stream:
        """Open the rows of one worker that are committed by now.

        Args:
            worker: the data-parallel worker.
            kind: whole gradients (`"full"`), sampled elements (`"track"`), or bytes: Summaries
                (`"summary"`), rows of compressors that ran beside the training (`"shadow"`).

        Raises:
            LookupError: no such worker, or no such rows.
        """
        check_kind(kind)
        if worker not in self.workers:
            workers = ", ".join(map(str, self.workers)) or "none yet"
            raise LookupError(f"cannot read worker {worker} of {self.path}: it has {workers}")
        return open_stream(self.path, worker, kind, self.parameters)

    def __repr__(self) -> str:
        elements = sum(p.numel for p in self.parameters)
        size = f"{len(self.parameters)} parameters, {elements:,} elements"
        return f"GradientStore({str(self.path)!r}, {size}, workers {list(self.workers)})"
