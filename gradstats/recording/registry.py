"""The recordings of this process: closed together, and out of the way of the next one."""

import atexit
import gc
import weakref
from pathlib import Path
from typing import Any, Protocol

from gradstats.recording.writer import Writer
from gradstats.store import Place


class Recording(Protocol):
    """What the registry needs of a recording."""

    @property
    def stepping(self) -> bool:
        """Whether an optimizer of the training is left."""

    @property
    def place(self) -> Path | Place:
        """Where the rows go."""

    def close(self) -> None:
        """Store what was recorded, and let others write there."""


# weak, so that a training that is given up is free to go
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


def register(recording: Recording, writer: Writer) -> None:
    """Remember a recording until it is closed; at Python's exit it is."""
    _OPEN.add(recording)
    _WRITERS.add(writer)
    atexit.unregister(close_all)
    atexit.register(close_all)  # before what was registered until now, as if it were the first


def closed(recording: Recording) -> None:
    """Forget a recording."""
    _OPEN.discard(recording)


def close_all() -> None:
    """Close every recording of this process, and wait until its rows are stored.

    For a notebook in which the handle of a recording is lost, and for tests. Handles that are
    closed by this stay usable: they report what was recorded.

    Example:
        >>> close_all()
    """
    for recording in list(_OPEN):
        recording.close()
    for writer in list(_WRITERS):
        if writer.ending:
            writer.join()


def make_way(place: Path | Place) -> None:
    """Close the recordings at `place` whose optimizers are gone, and wait for their last rows.

    One whose optimizer is alive stays open: it may belong to a training that runs.
    """
    rivals = [one for one in list(_OPEN) if _same(one.place, place)]
    if any(one.stepping for one in rivals):
        gc.collect()  # an optimizer in a reference cycle is as good as gone
    for one in rivals:
        if not one.stepping:
            one.close()
    for writer in list(_WRITERS):
        if writer.ending and _same(writer.place, place):
            writer.join()


def _same(one: Path | Place, other: Path | Place) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other
