"""How the text of an option becomes a value; a wrong one exits with 2."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer

from gradstats.settings import SettingError, split


def words(text: str) -> list[str]:
    """The words between commas outside brackets."""
    return list(split(text))


def chosen_specs(text: str) -> list[str]:
    """The compressors of `--compressors`: those supported by default, or all of them."""
    from gradstats.compressors import COMPRESSORS, DEPLOYED, SUPPORTED

    known = {"": (*SUPPORTED, *DEPLOYED), "all": (*COMPRESSORS, *DEPLOYED)}
    return list(known[text]) if text in known else words(text)


def parse_steps(text: str) -> tuple[int | None, int | None, int]:
    """`START:STOP:STRIDE`, any of them left out, or one step."""
    match = re.fullmatch(r"(\d*)(?::(\d*)(?::(\d*))?)?", text)
    if not match or (match[1] == "" and ":" not in text) or match[3] == "0":
        raise SettingError("steps", f"must look like 100:500:10, got {text!r}")
    if ":" not in text:
        return int(text), int(text) + 1, 1
    start, stop, stride = (int(word) if word else None for word in match.groups())
    return start, stop, stride or 1


def share(value: float) -> float:
    """Check an option's number, which must lie in [0, 1]."""
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"it must lie in [0, 1], got {value}")
    return value


def at_least(least: int) -> Callable[[int], int]:
    """A check of an option's number, which must not be less."""

    def check(number: int) -> int:
        if number < least:
            raise typer.BadParameter(f"it must be at least {least}, got {number}")
        return number

    return check
