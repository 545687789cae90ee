"""Every mistake of the table is answered with what was typed, the rule, and often the remedy."""

import builtins
import shlex

import pytest

from tests.mistakes.mistake import INTERNAL, Mistake, missing_part, mistakes

EVERY = mistakes()


def rows(given: str) -> list[object]:
    """The mistakes that can be made that way."""
    return [pytest.param(each, id=each.name) for each in EVERY if getattr(each, given)]


def check(message: str, answer: str) -> None:
    assert not missing_part(message, answer), message
    assert not [word for word in INTERNAL if word in message], message


@pytest.mark.parametrize("mistake", rows("python"))
def test_in_python(mistake: Mistake, names, capfd):
    if not mistake.raises:
        exec(mistake.python, names)
        check("\n".join(capfd.readouterr()), mistake.answer)
        return
    with pytest.raises(getattr(builtins, mistake.raises)) as error:
        exec(mistake.python, names)
    assert error.type.__name__ not in ("KeyError", "IndexError", "AttributeError")
    check(str(error.value), mistake.answer)


@pytest.mark.parametrize("mistake", rows("command"))
def test_on_the_command_line(mistake: Mistake, at_desk, call):
    code, out, err = call(*shlex.split(mistake.command))
    check(err + " ".join(out.split()), mistake.said)
    assert code == mistake.code, err


def test_there_are_55_mistakes():
    assert len(EVERY) >= 55
    assert all(each.answer for each in EVERY if each.python)
    assert all(each.said for each in EVERY if each.command)
