"""Wrong values of options: they exit with 2, and the message names the option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gradstats.cli.spellings import option_of
from gradstats.settings import SettingError


def wrong_value(error: SettingError) -> typer.BadParameter:
    """The error of a setting, with the option that the user wrote in place of its name."""
    return typer.BadParameter(error.fact, param_hint=option_of(error.setting))


@contextmanager
def spelled(**options: str) -> Iterator[None]:
    """Let a SettingError inside name the option of a setting that has another name.

    Args:
        options: Name of the option by name of the setting, both with underscores.

    Raises:
        SettingError: One was raised inside.
    """
    try:
        yield
    except SettingError as error:
        name = options.get(error.setting, error.setting)
        raise SettingError(name, error.fact) from error


@contextmanager
def usage() -> Iterator[None]:
    """Turn a ValueError inside into a wrong value of an option, unless it is about the run."""
    from gradstats.runs.emptiness import NoGradientsError
    from gradstats.store import StoreFormatError

    try:
        yield
    except (StoreFormatError, NoGradientsError):
        raise
    except SettingError as error:
        raise wrong_value(error) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
