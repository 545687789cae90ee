"""What a user types by mistake, and what the answer must contain."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLES = ("engineer", "researcher", "team")

#: What no answer contains: names of the inside, which say nothing about what was typed.
INTERNAL = (
    "Traceback",
    "has no attribute",
    "NoneType",
    "is not iterable",
    "not subscriptable",
    "object is not callable",
    "index out of range",
    "KeyError",
    "__init__",
    "positional argument",
    "AssertionError",
    "asdict",
    "UFunc",
)


@dataclass(frozen=True)
class Mistake:
    """One mistake, from Python and from the command line where it can be made there.

    Attributes:
        name: of the mistake.
        python: the statements that are typed; "" where there is no way to make it.
        answer: parts of the message of the exception, in order, separated by " … ".
        raises: name of the exception; "" where it is printed on stderr and training goes on.
        command: the words after `gradstats`.
        said: parts of stderr, as `answer`.
        code: the exit code.
    """

    name: str
    python: str = ""
    answer: str = ""
    raises: str = "ValueError"
    command: str = ""
    said: str = ""
    code: int = 2


def mistakes() -> tuple[Mistake, ...]:
    """Read the tables."""
    folder = Path(__file__).parent
    texts = [(folder / f"{table}.toml").read_text(encoding="utf-8") for table in TABLES]
    return tuple(
        Mistake(name, **row) for text in texts for name, row in tomllib.loads(text).items()
    )


def missing_part(message: str, answer: str) -> str:
    """The first part of `answer` that does not follow the others in the message; "" if all do."""
    position = 0
    for part in answer.split(" … "):
        position = message.find(part, position)
        if position < 0:
            return part
        position += len(part)
    return ""
