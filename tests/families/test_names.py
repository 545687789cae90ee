"""Unknown names of families and methods are answered with the nearest one."""

import pytest

from gradstats.families import Laplace, family


@pytest.mark.parametrize(("name", "near"), [("laplas", "laplace"), ("Gennorm", "gennorm")])
def test_an_unknown_family_answers_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"got '{name}'; did you mean {near}\?$"):
        family(name)


def test_an_unknown_name_that_is_near_to_none_gets_no_guess():
    with pytest.raises(ValueError, match=r"must be one of laplace, .*, got 'cauchy'$"):
        family("cauchy")


def test_an_unknown_method_answers_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"one of moments, mle, got 'moment'; did you mean moments"
    ):
        Laplace.fit([1.0, 2.0], method="moment")
