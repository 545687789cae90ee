"""Options that come from the fields of a settings dataclass: name, help, choices and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer

from gradstats.cli.commands import Command, rich_or_plain
from gradstats.cli.parsing import words
from gradstats.cli.spellings import SPELLINGS, Spelling
from gradstats.cli.usage import usage
from gradstats.settings import naming

Function = Callable[..., None]


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
    example: str = "",
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
        example: A command line that is printed below the options.
    """

    def decorate(function: Function) -> Function:
        def build(name: str) -> Any:
            called = _called(
                function,
                [_generated(name, home, without, defaults or {}) for name, home in homes.items()],
            )
            one = typer.Typer(add_completion=False, rich_markup_mode=rich_or_plain())
            epilog = f"Example: {example}" if example else None
            one.command(name, cls=Command, context_settings=context, epilog=epilog)(called)
            return typer.main.get_command(one)

        class OfSettings(Deferred):
            make = staticmethod(build)

        app.command(function.__name__, cls=OfSettings, help=function.__doc__)(lambda: None)
        return function

    return decorate


class Deferred(Command):
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
        fields = {}
        for one in self.options:
            with naming(one.field):
                fields[one.field] = one.read(given.pop(one.parameter.name))
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
