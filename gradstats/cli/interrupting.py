"""Ctrl-C and SIGTERM: one line that names what is kept and what continues, and exit code 130."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

CODE = 130  # of a command that Ctrl-C ended, as shells have it


class Interruptible(TyperGroup):
    """The commands; an interrupt ends one with a line on stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            from gradstats.cli.printing import remark

            notes = getattr(stop, "__notes__", [])
            remark(f"interrupted: {notes[-1]}" if notes else "interrupted")
            raise typer.Exit(CODE) from stop


def end_as_by_interrupt() -> None:
    """Let SIGTERM end a command as Ctrl-C does: what is computed is written first."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
