"""Wrong values of options: they exit with 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def usage() -> Iterator[None]:
    """Turn a ValueError inside into a wrong value of an option, unless the store raised it."""
    from gradstats.store import StoreFormatError

    try:
        yield
    except StoreFormatError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
