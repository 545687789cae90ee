"""The recordings of one callback: one segment of a store per training."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from gradstats.recording import Capture, Idle, capture
from gradstats.recording.messages import write_line


class Segments:
    """Begins and ends recordings to one path, and never raises into a trainer.

    A trainer may start again whenever it likes: with half the batch size after an out-of-memory
    error, with other hyperparameters, or because `fit` is called twice. Each start closes the
    recording that is still open and adds a segment to the store that this callback has begun.

    Args:
        path: The store to write.
        settings: As in `gradstats.capture`.

    Attributes:
        capture: The last recording; None before the first, and after attaching failed.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.capture: Capture | Idle | None = None
        self._begun = False  # this callback has recorded to the path: what lies there is its own

    def begin(
        self, training: Callable[[], tuple[Any, Any]], *, start_step: int | None, resume: bool
    ) -> None:
        """Attach to a training that begins, or print why that fails.

        Args:
            training: Returns the model and the optimizer.
            start_step: Number of the first step; None for that of the settings.
            resume: The training goes on from a checkpoint.
        """
        self.end()
        self.capture = None
        settings = dict(self.settings)
        if start_step is not None:
            settings["start_step"] = start_step
        if resume or self._begun:
            settings["if_exists"] = "resume"
        with printing_errors("not recorded"):
            model, optimizer = training()
            self.capture = capture(model, optimizer, self.path, **settings)
            self._begun = True

    def end(self) -> None:
        """Close the recording, if one is open."""
        with printing_errors("cannot close the recording"):
            if self.capture is not None:
                self.capture.close()

    def __getstate__(self) -> dict[str, Any]:
        # trainers copy their callbacks to other processes; a recording stays in its own
        return {**self.__dict__, "capture": None}


@contextlib.contextmanager
def printing_errors(what: str) -> Iterator[None]:
    """Print an error of the block instead of raising it into the trainer."""
    try:
        yield
    except Exception as error:
        write_line(f"{what}: {type(error).__name__}: {error}; training goes on")
