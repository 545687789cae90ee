"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

import os
import sys
from typing import Annotated

import typer

from gradstats.cli import analysing, listing, making
from gradstats.cli.commands import rich_or_plain
from gradstats.cli.interrupting import Interruptible, end_as_by_interrupt
from gradstats.cli.printing import complain, remarks, say
from gradstats.cli.usage import wrong_value
from gradstats.settings import SettingError

app = typer.Typer(
    name="gradstats",
    cls=Interruptible,
    help="What do my gradients look like, and which compressor should carry them?",
    epilog="Example: gradstats demo --quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for theme in (making, analysing, listing):
    app.add_typer(theme.app)


def main() -> None:
    """Run the command line; exit with 0, 1 (failed), 2 (called wrongly) or 130 (interrupted)."""
    sys.path.insert(0, os.getcwd())  # compressors of one's own: my_module:Mine
    app.rich_markup_mode = rich_or_plain()
    end_as_by_interrupt()
    try:
        app(prog_name="gradstats")
    except SettingError as error:
        complain(wrong_value(error).format_message())
        sys.exit(2)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(str(error) or type(error).__name__)
        remarks(getattr(error, "__notes__", ()))
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        import gradstats

        say(gradstats.__version__)
        raise typer.Exit()


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What do my gradients look like, and which compressor should carry them?"""
