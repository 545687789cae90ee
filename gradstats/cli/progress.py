"""Progress on stderr: a bar at a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

SLOW = 2.0  # seconds after which a progress bar appears
INTERVAL = 10.0  # seconds from one line to the next
Advance = Callable[[str, int, int], None]  # stage, done, of how many


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """Show the progress of a command; call what is returned: (stage, done, total).

    Args:
        console: Of stderr.
        clock: Returns seconds.
    """
    if console.is_terminal:
        with _bar(console, clock) as advance:
            yield advance
    else:
        yield _lines(console, clock)


@contextmanager
def _bar(console: Console, clock: Callable[[], float]) -> Iterator[Advance]:
    """A progress bar that appears after two seconds."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console, transient=True)
    task, start = shown.add_task(""), clock()

    def advance(stage: str, done: int, total: int) -> None:
        if not shown.live.is_started and clock() - start > SLOW:
            shown.start()
        shown.update(task, description=stage, completed=done, total=total)

    try:
        yield advance
    finally:
        if shown.live.is_started:  # else it prints an empty line
            shown.stop()


def _lines(console: Console, clock: Callable[[], float]) -> Advance:
    """Lines such as `replay: 1,200 of 4,000, 30 s`, at most one every ten seconds."""
    start = last = clock()

    def advance(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last >= INTERVAL:
            last = now
            text = f"{stage}: {done:,} of {total:,}, {now - start:,.0f} s"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return advance
