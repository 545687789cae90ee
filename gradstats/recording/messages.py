"""What a recording says, on stderr: news that can be silenced, and each fault once."""

import contextlib
import sys
from collections.abc import Sequence


class Reports:
    """Lines on stderr. Writing one never raises: it happens inside somebody's training.

    Args:
        quiet: Say faults only.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._told: set[str] = set()

    def news(self, text: str) -> None:
        """Say something, unless quiet."""
        if not self._quiet:
            write_line(text)

    def once(self, subject: str, text: str) -> None:
        """Say something about ``subject``, the first time only."""
        if subject not in self._told:
            self._told.add(subject)
            write_line(text)


def shortened(names: Sequence[str], most: int = 4) -> str:
    """The first of some names.

    Example:
        >>> shortened(["a", "b", "c"], most=2)
        'a, b, …'
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def write_line(text: str) -> None:
    """Write one line to stderr, if there is one that takes it."""
    # RuntimeError: the garbage collector ends a recording in the middle of another write
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        sys.stderr.write(f"gradstats: {text}\n")
        sys.stderr.flush()
