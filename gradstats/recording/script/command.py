"""Running a command with its training recorded, script unchanged."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from gradstats.recording.messages import write_line
from gradstats.recording.provenance import VARIABLE
from gradstats.recording.script.attaching import Session
from gradstats.recording.script.reasons import why_nothing
from gradstats.recording.script.trainings import Trainings, rows_recorded
from gradstats.recording.settings import CaptureSettings
from gradstats.store import as_place

_STARTUP = Path(__file__).with_name("startup.py")
_NOT_FOUND = 127  # a shell's exit code for a command that does not exist


def run_command(
    argv: Sequence[str], settings: CaptureSettings, *, out: str | os.PathLike[str]
) -> int:
    """Run a command and record the trainings in it, of each the first optimizer to take a step.

    Every Python below the command, however deep, attaches by itself; under a launcher such as
    torchrun all workers write to one run. Processes that train by themselves are trainings of
    their own: the first is recorded at `out`, the others beside it (`run-2.zarr`, ...), and at
    the end they are listed.

    Args:
        argv: The command.
        settings: Of every recording; `on_summary` has no effect.
        out: The store to write, of the first training.

    Returns:
        The command's exit code; 128 + n where signal n ended it, 127 where it cannot be started,
        and 1 where it succeeded but nothing was recorded.

    Raises:
        ValueError: No command, or a setting that only a script can have.
        FileExistsError: There is something at `out` and `if_exists` is "error".
        StoreFormatError: What is at `out` is not a store that can be added to or replaced.
    """
    if not argv:
        raise ValueError("argv must name a command to run, got none; write it after --")
    path = as_place(out)
    path = path.absolute() if isinstance(path, Path) else path
    session = Session(str(path), settings)
    session.check()
    with tempfile.TemporaryDirectory(prefix="gradstats-") as folder:
        shutil.copy(_STARTUP, Path(folder, "sitecustomize.py"))
        try:
            code = _run(argv, _environment(replace(session, folder=folder), folder))
        except OSError as error:
            write_line(f"cannot run {argv[0]!r}: {error.strerror}")
            return _NOT_FOUND
        return _reported(Path(folder), code, session)


def _reported(folder: Path, code: int, session: Session) -> int:
    """Print what the trainings of a command recorded; returns the exit code."""
    rows, trainings = rows_recorded(folder), Trainings(folder).entries
    if len(trainings) > 1 and not session.settings.quiet:
        listed = ", ".join(f"{one.path} ({rows.get(one.path, 0):,} rows)" for one in trainings)
        write_line(f"recorded {len(trainings)} trainings: {listed}")
    if any(rows.values()):
        return code
    write_line(f"nothing was recorded in {session.out}: {why_nothing(folder, session.settings)}")
    return code or 1


def _environment(session: Session, startup: str) -> dict[str, str]:
    places = [startup, os.environ.get("PYTHONPATH", "")]
    # an empty entry would put the working directory on the path
    python_path = os.pathsep.join(place for place in places if place)
    return {**os.environ, "PYTHONPATH": python_path, VARIABLE: session.to_json()}


def _run(argv: Sequence[str], environment: dict[str, str]) -> int:
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        if child is not None:
            child.send_signal(number)

    # Ctrl-C reaches the command from the terminal, which signals the whole process group
    with _signals({signal.SIGINT: lambda *_: None, signal.SIGTERM: pass_on}):
        child = subprocess.Popen(list(argv), env=environment)
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals(
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
