"""One mistake: what was typed, in Python and on the command line, and what the answer contains."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One row of the table.

    Attributes:
        name: of the mistake, in the words of the person who makes it.
        python: source text as typed; it runs in a folder with `run.zarr`. Empty if there is none.
        argv: the words after `gradstats`. Empty if the command line has no such thing.
        answer: what both answers contain: the rule, the value as typed, often the remedy.
        in_python: what the answer in Python contains besides, often the argument.
        on_line: what the answer on the command line contains besides, often the flag.
        raises: the exception in Python.
        code: the exit code of the command.
    """

    name: str
    python: str = ""
    argv: str = ""
    answer: tuple[str, ...] = ()
    in_python: tuple[str, ...] = ()
    on_line: tuple[str, ...] = ()
    raises: type[Exception] | tuple[type[Exception], ...] = ValueError
    code: int = 2
