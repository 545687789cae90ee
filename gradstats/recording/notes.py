"""What the processes below `gradstats capture` report to it: files in the command's own folder."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradstats.recording.provenance import VARIABLE

_noted: set[str] = set()  # what this process has reported once


def note(kind: str, **facts: Any) -> None:
    """Report something to the command above this process, if there is one; never raises.

    Args:
        kind: What happened: "torch", "optimizer", "step", "recording" or "failed".
        facts: JSON values.
    """
    # the command may have ended, or run on another machine
    with contextlib.suppress(OSError, ValueError, KeyError):
        folder = json.loads(os.environ[VARIABLE])["folder"]
        if folder:
            name = f"{kind}.{uuid.uuid4().hex}"
            partial = Path(folder, f"{name}.partial")
            partial.write_text(json.dumps(facts))
            partial.rename(Path(folder, f"{name}.note"))


def note_once(kind: str) -> None:
    """Report something the first time that it happens in this process."""
    if kind not in _noted:
        _noted.add(kind)
        note(kind)


def notes(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Read the reports of one kind."""
    for file in sorted(folder.glob(f"{kind}.*.note")):
        yield json.loads(file.read_bytes())
