"""Every mistake of the table, from Python and from the command line, gets its answer."""

import re
import shlex

import pytest

from tests.mistakes import engineer, researcher, trainer
from tests.mistakes.desk import session
from tests.mistakes.mistake import Mistake

TABLE = [*engineer.ROWS, *researcher.ROWS, *trainer.ROWS]
IN_PYTHON = [row for row in TABLE if row.python]
ON_LINE = [row for row in TABLE if row.argv]
INSIDE = re.compile(
    r"has no attribute|NoneType|index out of range|KeyError|__\w+__|Traceback|AssertionError"
    r"|not iterable|not subscriptable|not callable|positional argument|unsupported operand"
)


def name_of(row: Mistake) -> str:
    return row.name


def answered(row: Mistake, text: str, extra: tuple[str, ...]) -> None:
    missing = [part for part in (*row.answer, *extra) if part not in text]
    assert not missing, f"{missing} is not in {text!r}"
    assert not INSIDE.search(text), text


@pytest.mark.parametrize("row", IN_PYTHON, ids=name_of)
def test_python_answers(row, desk, capfd):
    with pytest.raises(row.raises) as caught:
        exec(compile(row.python, "typed", "exec"), session())
    answered(row, str(caught.value), row.in_python)


@pytest.mark.parametrize("row", ON_LINE, ids=name_of)
def test_the_command_line_answers(row, desk, call):
    code, _, err = call(*shlex.split(row.argv))
    assert code == row.code, err
    answered(row, err, row.on_line)


def test_the_table_has_each_mistake_once_and_an_answer_to_each():
    assert len(TABLE) >= 55
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.python or row.argv for row in TABLE)
    assert all(row.answer or row.in_python for row in IN_PYTHON)
    assert all(row.answer or row.on_line for row in ON_LINE)
