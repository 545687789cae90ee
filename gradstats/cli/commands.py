"""Commands that help with what was typed: lists with blanks, options of earlier versions."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal

import typer
from typer.core import TyperCommand

LISTS = (
    *("--families", "--ratios", "--compressors", "--shadow", "--at", "--feedback"),
    *("--granularity", "--steps", "--mode"),
)
RENAMED = {
    "fit": {"--by": "--group-by"},
    "report": {
        "--by": "--group-by",
        "--workers": "--network-workers",
        "--gbits": "--network-gbits",
    },
    "replay": {"--by": "--granularity", "--gbits": "--network-gbits"},
    "import": {"--workers": "--files-per-step"},
    "capture": {"--full": "--full-every"},
}
UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer uses


def rich_or_plain() -> Literal["rich"] | None:
    """How help and errors are printed: in boxes at a terminal, else as plain text."""
    return "rich" if sys.stdout.isatty() and sys.stderr.isatty() else None


class Command(TyperCommand):
    """A command that takes `--families laplace, dgamma` and names the option that was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name."""
        valued = {name for each in self.params if takes_value(each) for name in each.opts}
        words = joined(args, valued, interspersed=ctx.allow_interspersed_args)
        try:
            return super().parse_args(ctx, list(words))
        except UsageError as error:
            if hasattr(error, "possibilities"):  # there is no such option
                suggest(error, RENAMED.get(str(self.name), {}))
            elif isinstance(error, typer.BadParameter) and error.param:
                error.message += typed(words, error.param.opts, error.message)
            raise


def takes_value(parameter: Any) -> bool:
    """Whether an option is followed by a value."""
    return parameter.param_type_name == "option" and not parameter.is_flag


def joined(words: Sequence[str], valued: Collection[str], *, interspersed: bool) -> list[str]:
    """Join the parts of lists that a shell split at the blanks beside commas.

    Args:
        words: What was typed after the command's name.
        valued: Options that are followed by a value.
        interspersed: Whether options may follow arguments; else words from the first argument on
            stay as they are.

    Example:
        >>> joined(["run", "--ratios", "0.1,", "0.01"], {"--ratios"}, interspersed=True)
        ['run', '--ratios', '0.1,0.01']
    """
    done: list[str] = []
    rest = list(words)
    while rest:
        done.append(rest.pop(0))
        name, equals, _ = done[-1].partition("=")
        if done[-1] == "--" or not (interspersed or name.startswith("-")):
            return done + rest
        if name in valued and not equals and rest:
            done.append(rest.pop(0))
        while name in LISTS and rest and goes_on(done[-1], rest[0]):
            done[-1] += rest.pop(0)
    return done


def goes_on(value: str, word: str) -> bool:
    """Whether a word continues a list: a comma stands between them."""
    return word.startswith(",") or (value.endswith(",") and not word.startswith("-"))


def typed(words: Sequence[str], options: Sequence[str], message: str) -> str:
    """The value that was typed for an option, where the message lacks it: `, got 'x'`."""
    value = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, after = word.partition("=")
        if name in options:
            value = after if equals else following
    return f", got {value!r}" if value and value not in message else ""


def suggest(error: Any, renamed: dict[str, str]) -> None:
    """Let the error of an unknown option name the one that was meant."""
    name, near = error.option_name, error.possibilities
    error.possibilities = None
    if name in renamed:
        error.message = f"No such option: {name}; it is called {renamed[name]} now."
    elif near:
        error.message = f"No such option: {name}; did you mean {near[0]}?"
