"""Wrong values of options: they exit with 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def usage() -> Iterator[None]:
    """Turn a ValueError inside into a wrong value of an option, unless it is about the run."""
    from gradstats.runs.emptiness import NoGradientsError
    from gradstats.store import StoreFormatError

    try:
        yield
    except (StoreFormatError, NoGradientsError):
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
