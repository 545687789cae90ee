"""How fields of settings that are no plain values are written on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradstats.cli.parsing import chosen_specs, parse_steps, words


@dataclass(frozen=True)
class Spelling:
    """How a field that is not a plain value is written on the command line.

    Attributes:
        default: The option's default; None: that of the field.
        read: Makes the field's value of the option's.
        name: The option's name, with underscores; "" for the field's.
        metavar: What stands for the value in the help; "" for the type's name.
        help: Sentence of the option; "" for the field's.
    """

    default: Any = None
    read: Callable[[Any], Any] | None = None
    name: str = ""
    metavar: str = ""
    help: str = ""


def _interval(steps: int) -> Any:
    from gradstats.recording.schedules import every

    return every(steps) if steps else None


def _or_none(text: str) -> str | None:
    return text or None


def _none_if_all(text: str) -> str | None:
    return None if text == "all" else text


SPECS = "Compressors, such as topk or sidco-e(0.01) (comma-separated)"
SPELLINGS: Mapping[str, Spelling] = {
    "full": Spelling(
        500, _interval, "full_every", help="Keep the whole gradient every n steps; 0: never."
    ),
    "track": Spelling(metavar="ELEMENTS"),
    "shadow": Spelling("", words, metavar="SPECS"),
    "at": Spelling("auto", words, metavar="POINTS"),
    "parameters": Spelling(metavar="GLOB"),
    "max_bytes": Spelling(metavar="SIZE"),
    "by": Spelling(
        name="group_by",
        metavar="GROUPING",
        help="Group parameters: model, module-type, parameter, or a regular expression that is "
        "searched for in their names, whose match names the group.",
    ),
    "families": Spelling(
        "all",
        _none_if_all,
        metavar="NAMES",
        help="Distributions to fit (comma-separated): laplace, my_module:MyFamily of your own, "
        "scipy:NAME as a slow reference; all: those of the package.",
    ),
    "ratios": Spelling("0.1,0.01,0.001", metavar="RATIOS"),
    "compensated": Spelling("", _or_none, metavar="SPEC"),
    "kind": Spelling("", _or_none, metavar="KIND"),
    "compressors": Spelling(
        "",
        chosen_specs,
        metavar="SPECS",
        help=f"{SPECS}; default: the supported ones; all: the reference methods too.",
    ),
    "steps": Spelling("::", parse_steps, metavar="START:STOP:STRIDE"),
    "budget": Spelling(
        "5min",
        metavar="TIME",
        help="Time after which no further replay begins: 90s, 5min, 1h.",
    ),
    "feedback": Spelling(help="Without error feedback, with it, or both (comma-separated)."),
    "granularity": Spelling(help="Threshold per model, per parameter, or both (comma-separated)."),
}


def option_of(setting: str) -> str:
    """The option of a setting, as the user writes it; an argument in capitals is its own name.

    Example:
        >>> option_of("by"), option_of("if_exists"), option_of("NAME")
        ('--group-by', '--if-exists', 'NAME')
    """
    if setting.isupper():
        return setting
    names = {name: each.name for name, each in SPELLINGS.items() if each.name}
    names |= {"modes": "mode"}
    return "--" + names.get(setting, setting).replace("_", "-")
