"""Options that come from the fields of a settings dataclass: name, help, choices and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from gradstats.cli.parsing import (
    chosen_specs,
    parse_ratios,
    parse_seconds,
    parse_steps,
    split_specs,
    words,
)
from gradstats.cli.usage import usage

Function = Callable[..., None]


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


SPECS = "Compressors, such as topk or sidco-e(0.01) (comma-separated)"
SPELLINGS: Mapping[str, Spelling] = {
    "full": Spelling(
        500, _interval, "full_every", help="Keep the whole gradient every n steps; 0: never."
    ),
    "track": Spelling(metavar="ELEMENTS"),
    "shadow": Spelling("", split_specs, metavar="SPECS"),
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
        "",
        lambda text: words(text) if text else None,
        metavar="NAMES",
        help="Distributions to fit (comma-separated): laplace, my_module:MyFamily of your own, "
        "scipy:NAME as a slow reference; default: all.",
    ),
    "ratios": Spelling("0.1,0.01,0.001", parse_ratios, metavar="RATIOS"),
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
        parse_seconds,
        metavar="TIME",
        help="Time after which no further replay begins: 90s, 5min, 1h.",
    ),
    "feedback": Spelling(help="Without error feedback, with it, or both (comma-separated)."),
    "granularity": Spelling(help="Threshold per model, per parameter, or both (comma-separated)."),
}


@dataclass(frozen=True)
class Generated:
    """One option and how its value becomes that of a field."""

    field: str
    parameter: inspect.Parameter
    read: Callable[[Any], Any]


def options(
    kind: Any, *, without: Collection[str], defaults: Mapping[str, Any]
) -> Iterator[Generated]:
    """The options of a settings dataclass.

    Args:
        kind: The dataclass.
        without: Fields that have no option.
        defaults: Other defaults than those of the fields.
    """
    for each in fields(kind):
        if each.name not in without:
            yield _option(each, SPELLINGS.get(each.name, Spelling()), defaults)


def _option(each: Field[Any], spelling: Spelling, defaults: Mapping[str, Any]) -> Generated:
    default = each.default if spelling.default is None else spelling.default
    default = defaults.get(each.name, default)
    choices, read = each.metadata["choices"], spelling.read or _same
    text = spelling.help or each.metadata["help"]
    kind: Any = type(default)
    metavar = spelling.metavar or None
    if isinstance(default, tuple):
        default, kind, read = ",".join(map(str, default)), str, words
        metavar = ",".join(choices) if choices else None
    elif choices:
        kind, read = _enum(each.name, choices), _value
        default = kind(default)
    info = typer.Option(help=text, metavar=metavar)
    parameter = inspect.Parameter(
        spelling.name or each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )
    return Generated(each.name, parameter, read)


def _enum(name: str, choices: Sequence[str]) -> Any:
    """An enumeration, whose values typer shows in the help."""
    return StrEnum(name, {choice: choice for choice in choices})


def _same(value: Any) -> Any:
    return value


def _value(choice: StrEnum) -> Any:
    return choice.value


def command(
    app: typer.Typer,
    homes: Mapping[str, str],
    *,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a command, with an option per field of its settings.

    The modules of the settings are imported when the command is called, so that the help of the
    program loads none.

    Args:
        app: The program.
        homes: Where the dataclass of an argument is, `package.module:Class`.
        without: Fields that have no option.
        defaults: Other defaults than those of the fields.
        context: Settings of the command's context.
    """

    def decorate(function: Function) -> Function:
        def build(name: str) -> Any:
            called = _called(
                function,
                [_generated(name, home, without, defaults or {}) for name, home in homes.items()],
            )
            one = typer.Typer(add_completion=False)
            one.command(name, context_settings=context)(called)
            return typer.main.get_command(one)

        class OfSettings(Deferred):
            make = staticmethod(build)

        app.command(function.__name__, cls=OfSettings, help=function.__doc__)(lambda: None)
        return function

    return decorate


class Deferred(TyperCommand):
    """A command whose options are known once it is called."""

    make: Callable[[str], Any]

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Make the context of the command with its options."""
        return built(self).make_context(*args, **extra)


def built(command: Any) -> Any:
    """The command with all its options, deferred ones among them."""
    return command.make(str(command.name)) if isinstance(command, Deferred) else command


@dataclass(frozen=True)
class Argument:
    """An argument of a function that is made of options."""

    name: str
    kind: Any
    options: Sequence[Generated]

    def value(self, given: dict[str, Any]) -> Any:
        """The argument's value; its options are taken out of those given."""
        fields = {one.field: one.read(given.pop(one.parameter.name)) for one in self.options}
        return self.kind(**fields)


def _generated(
    argument: str, home: str, without: Collection[str], defaults: Mapping[str, Any]
) -> Argument:
    module, _, name = home.partition(":")
    kind = getattr(import_module(module), name)
    return Argument(argument, kind, list(options(kind, without=without, defaults=defaults)))


def _called(function: Function, arguments: Sequence[Argument]) -> Function:
    """The function with options in place of the arguments that are made of them."""

    def called(**given: Any) -> None:
        with usage():
            values = {each.name: each.value(given) for each in arguments}
        function(**values, **given)

    of_options = {each.name: [one.parameter for one in each.options] for each in arguments}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(function).parameters.values():
        plain = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        parameters += of_options.get(each.name, plain)
    called.__doc__ = function.__doc__
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    vars(called)["__signature__"] = inspect.Signature(parameters)
    return called
