"""The trainings below one command: each gets a number, and with it a store of its own."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradstats.recording.notes import notes
from gradstats.recording.opening import recorded_streams
from gradstats.recording.provenance import OUT
from gradstats.recording.settings import IfExists
from gradstats.store import GradientStore, Place, StoreFormatError, as_place


@dataclass(frozen=True)
class Entry:
    """A training below the command.

    Attributes:
        path: Its store.
        launcher: What started it and starts it again after a failure; "" where nothing does.
    """

    path: str
    launcher: str


class Trainings:
    """Numbers for the trainings of one command, given out through a folder on this machine.

    The first records to the path that the command names, `run.zarr`, the second to
    `run-2.zarr` beside it, and so on: no training of a command touches what another one
    recorded. All workers of a process group are one training, for which rank 0 asks.

    Args:
        folder: Made for this command alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def entries(self) -> list[Entry]:
        """The trainings so far, by number."""
        files = {int(file.suffix[1:]): file for file in self._folder.glob("training.*")}
        return [Entry(**json.loads(files[number].read_bytes())) for number in sorted(files)]

    @contextmanager
    def claim(self, out: str, if_exists: IfExists) -> Iterator[tuple[str, IfExists]]:
        """Take the store of this process's training; a failure in the block gives it back.

        Args:
            out: The path that the command names.
            if_exists: What the user said of stores of before the command.

        Yields:
            The path to record to, and what to do with a store there.
        """
        launcher = _launcher()
        if restarted():
            if_exists = "resume"
            earlier = self._started_by(launcher)
            if earlier is not None:
                yield earlier.path, if_exists
                return
        file, path = self._first_free(out, if_exists, launcher)
        try:
            yield path, if_exists
        except BaseException:
            file.unlink()
            raise

    def _started_by(self, launcher: str) -> Entry | None:
        """The training of a launcher; the last of its run where a script stands between."""
        run = launcher.rpartition(" ")[0]
        of_run = [one for one in self.entries if run and one.launcher.rpartition(" ")[0] == run]
        same = [one for one in of_run if one.launcher == launcher]
        return next(reversed(same or of_run), None)

    def _first_free(self, out: str, if_exists: IfExists, launcher: str) -> tuple[Path, str]:
        for number in itertools.count(1):
            path, file = numbered(out, number), self._folder / f"training.{number}"
            if file.exists() or (number > 1 and not _replaceable(path, out, if_exists)):
                continue
            entry = {"path": path, "launcher": launcher}
            partial = self._folder / f"{os.getpid()}.partial"
            partial.write_text(json.dumps(entry))
            try:
                os.link(partial, file)  # whole at once, and for one process only
            except FileExistsError:
                continue
            finally:
                partial.unlink()
            return file, path
        raise AssertionError("count() ends never")


def numbered(out: str, number: int) -> str:
    """The path of a training's store.

    Example:
        >>> numbered("s3://bucket/run.zarr", 1), numbered("a.b/run.zarr", 2), numbered("run", 3)
        ('s3://bucket/run.zarr', 'a.b/run-2.zarr', 'run-3')
    """
    if number == 1:
        return out
    folder, slash, name = out.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    name = f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"
    return f"{folder}{slash}{name}"


def restarted() -> bool:
    """Whether torchrun has started this training before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rows_recorded(folder: Path) -> dict[str, int]:
    """Count the rows that the processes of one command recorded, by the path of the store.

    Rows of other segments, which other writers added, do not count.

    Args:
        folder: Of the command, in which its recordings are noted.
    """
    segments: dict[str, set[int]] = {}
    for each in notes(folder, "recording"):
        segments.setdefault(each["path"], set()).add(each["segment"])
    return {path: _rows_at(as_place(path), of) for path, of in segments.items()}


def _rows_at(place: Path | Place, segments: set[int]) -> int:
    """Rows of some segments in the store at `place`, 0 where there is none."""
    if not place.exists():
        return 0
    streams = recorded_streams(GradientStore.open(place))
    return sum(
        int(np.isin(stream.coordinates["segment"], list(segments)).sum()) for stream in streams
    )


def _replaceable(path: str, out: str, if_exists: IfExists) -> bool:
    """May a training record to this path, which the user did not name?

    Where there is nothing, or what an earlier command of the same `--out` recorded.
    """
    place = as_place(path)
    if not place.exists():
        return True
    if if_exists == "error":
        return False
    try:
        story = GradientStore.open(place).provenance
    except StoreFormatError:
        return False
    return bool(story.get(OUT) == out.rpartition("/")[2])


def _launcher() -> str:
    """What starts the workers of a group, and starts them again: a torchrun on this machine."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return ""
    parent = os.getppid()
    try:
        # a process number comes again, a start time does not
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{run} {parent}-{began}"
