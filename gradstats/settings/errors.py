"""The error of a wrong value, which names the setting and, where one is near, the right word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class SettingError(ValueError):
    """A setting has a wrong value: `<setting> must <rule>, got <value>`.

    Attributes:
        setting: Name of the argument in Python; the command line prints its option instead.
        fact: What is wrong, without the name.
    """

    def __init__(self, setting: str, fact: str) -> None:
        super().__init__(setting, fact)
        self.setting, self.fact = setting, fact

    def __str__(self) -> str:
        gap = " " if self.fact.startswith(("must ", "of ")) else ": "
        return f"{self.setting}{gap}{self.fact}"


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Let a ValueError inside name the setting whose value caused it.

    Args:
        setting: Name of the argument.

    Raises:
        SettingError: A ValueError was raised inside; it is the cause.
    """
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(setting, str(error).removeprefix(f"{setting} ")) from error


def nearest(name: Any, known: Iterable[str]) -> str:
    """Return `; did you mean laplace?` with the nearest of the known names, "" if none is near.

    Example:
        >>> nearest("laplas", ("laplace", "normal"))
        '; did you mean laplace?'
    """
    near = get_close_matches(str(name).lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
