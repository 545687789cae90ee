"""How the text of an option becomes a value; a wrong one exits with 2."""

from __future__ import annotations

import re
from collections.abc import Callable

import typer


def words(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def split_specs(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    specs, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += letter
    return [spec.strip() for spec in specs if spec.strip()]


def chosen_specs(text: str) -> list[str]:
    """The compressors of `--compressors`: those supported by default, or all of them."""
    from gradstats.compressors import COMPRESSORS, SUPPORTED

    known = {"": SUPPORTED, "all": COMPRESSORS}
    return list(known[text]) if text in known else split_specs(text)


def parse_ratios(text: str) -> list[float]:
    """Target ratios between commas."""
    from gradstats.ratios import check_ratio

    ratios = []
    for word in words(text):
        try:
            ratio = float(word)
            check_ratio("ratio", ratio)
        except ValueError as error:
            raise typer.BadParameter(f"ratios must be numbers in (0, 1], got {word!r}") from error
        ratios.append(ratio)
    if not ratios:
        raise typer.BadParameter(f"ratios must name at least one ratio, got {text!r}")
    return ratios


def parse_steps(text: str) -> tuple[int | None, int | None, int]:
    """`START:STOP:STRIDE`, any of them left out, or one step."""
    match = re.fullmatch(r"(\d*)(?::(\d*)(?::(\d*))?)?", text)
    if not match or (match[1] == "" and ":" not in text) or match[3] == "0":
        raise typer.BadParameter(f"steps must look like 100:500:10, got {text!r}")
    if ":" not in text:
        return int(text), int(text) + 1, 1
    start, stop, stride = (int(word) if word else None for word in match.groups())
    return start, stop, stride or 1


def parse_seconds(text: str) -> float:
    """A time with its unit: 90s, 5min, 1h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?", text.strip())
    if not match:
        raise typer.BadParameter(f"budget must look like 90s, 5min or 1h, got {text!r}")
    return float(match[1]) * {"min": 60, "m": 60, "h": 3600}.get(match[2] or "s", 1)


def at_least(least: int) -> Callable[[int], int]:
    """A check of an option's number, which must not be less."""

    def check(number: int) -> int:
        if number < least:
            raise typer.BadParameter(f"it must be at least {least}, got {number}")
        return number

    return check
