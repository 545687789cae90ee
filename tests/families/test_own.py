"""Families of one's own by `module:Class`: what is imported, and what is refused with why."""

import pickle

import pytest

from gradstats.families import FAMILIES, Laplace, family, spec_of
from gradstats.fitting.settings import FitSettings
from tests.testing.own_families import HypSecant

OWN = "tests.testing.own_families"
MODULE = """
from dataclasses import dataclass

from gradstats.families import Family, Laplace


@dataclass(frozen=True)
class Mine(Laplace):
    name = "mine"


@dataclass(frozen=True)
class Same(Laplace):
    pass


@dataclass(frozen=True)
class OfScipy(Laplace):
    name = "scipy:mine"


class Half(Family):
    name = "half"

    def logpdf(self, x):
        return x


class Bare(Family):
    from_likelihood = logpdf = log_kept = threshold = scipy = lambda self: None


@dataclass(frozen=True)
class Nameless(Bare):
    scale: float


law = Mine(1.0)
number = 3
"""


@pytest.fixture
def my_mod(tmp_path, monkeypatch):
    """The module in a folder on the path; a name of its own, so that no test sees another's."""
    name = f"my_mod_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_class_is_itself_and_is_imported_by_its_name(my_mod):
    assert family(f"{OWN}:HypSecant") is HypSecant
    assert family(HypSecant) is HypSecant
    mine = family(f"{my_mod}:Mine")
    assert issubclass(mine, Laplace)
    assert mine.name == "mine"
    assert FitSettings(families=f"{my_mod}:Mine").families == (mine,)
    assert FitSettings(families=("laplace", f"{my_mod}:Mine")).families == (Laplace, mine)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Min", r"my_mod\w* has no 'Min'; did you mean Mine\?"),
        ("", r"my_mod\w* has no ''$"),
        ("number", r"must be a subclass of gradstats.families.Family, got 3$"),
        ("dataclass", r"must be a subclass of gradstats.families.Family, got <function"),
        ("law", r"must be a class, such as my_mod\w*:Mine, got Mine\(scale=1.0\)"),
        ("Half", r"must define from_likelihood, log_kept, scipy, threshold$"),
        ("Bare", r"must be a frozen dataclass of its parameters"),
        ("Nameless", r"must have a name that does not begin with scipy:, .*, got None"),
        ("OfScipy", r"must have a name that does not begin with scipy:, .*, got 'scipy:mine'"),
    ],
)
def test_what_is_no_family_is_refused_with_the_reason(my_mod, attribute, message):
    with pytest.raises(ValueError, match=message) as caught:
        family(f"{my_mod}:{attribute}")
    assert f"family '{my_mod}:{attribute}'" in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named(my_mod):
    with pytest.raises(ValueError, match="cannot import family 'no_such_mod:X': ModuleNotFound"):
        family("no_such_mod:X")
    with pytest.raises(ValueError, match=f"'{my_mod}_broken:X': ZeroDivisionError: division"):
        family(f"{my_mod}_broken:X")


@pytest.mark.parametrize("given", [HypSecant(1.0), [Laplace, HypSecant(1.0)]])
def test_an_instance_is_refused_with_its_class(given):
    with pytest.raises(ValueError, match=r"a class, such as \S+:HypSecant, got HypSecant\("):
        FitSettings(families=given)


@pytest.mark.parametrize("given", [3, None, object])
def test_what_is_no_class_of_a_family_is_refused(given):
    with pytest.raises(ValueError, match=r"subclass of gradstats\.families\.Family, got"):
        FitSettings(families=[given])


def test_two_families_of_one_name_are_refused_and_one_given_twice_counts_once(my_mod):
    with pytest.raises(
        ValueError, match=r"different names, got 'laplace' of .*Laplace and .*Same"
    ):
        FitSettings(families=["laplace", f"{my_mod}:Same"])
    assert FitSettings(families=["laplace", Laplace]).families == (Laplace,)


def test_a_spec_names_the_class_again(my_mod):
    mine = family(f"{my_mod}:Mine")
    for each in (Laplace, mine, HypSecant, family("scipy:t")):
        assert family(spec_of(each, FAMILIES)) is each
    assert spec_of(mine, FAMILIES) == f"{my_mod}:Mine"
    assert pickle.loads(pickle.dumps(mine)) is mine
