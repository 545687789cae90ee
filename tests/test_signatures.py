"""Completion and help show every option: no public callable hides any behind `**keywords`."""

import importlib
import inspect
import typing
from dataclasses import fields

import pytest

import gradstats
from gradstats.fitting.settings import FitKeywords, FitSettings, PairKeywords, PairSettings
from gradstats.replaying.settings import ReplayKeywords, ReplaySettings
from gradstats.reporting.settings import ReportKeywords, ReportSettings
from gradstats.store.layout import COORDINATES
from gradstats.store.rows import Coordinates

ROOMS = ("compressors", "ddp_hooks", "exchange", "families", "lowrank", "metrics", "network")
ROOMS += ("over_steps", "plot", "recording", "runs", "store", "summary", "testing", "thresholds")
KEYWORDS = {
    "fit": (FitKeywords, FitSettings),
    "compare_distributions": (PairKeywords, PairSettings),
    "replay": (ReplayKeywords, ReplaySettings),
    "report": (ReportKeywords, ReportSettings),
}


def callables():
    for name in ("", *ROOMS):
        module = getattr(gradstats, name) if name else gradstats
        for public in getattr(module, "__all__", dir(module)):
            value = getattr(module, public, None)
            if not public.startswith("_") and is_ours(value):
                yield f"{name}.{public}", value
                methods = vars(value).items() if inspect.isclass(value) else ()
                yield from (
                    (f"{public}.{method}", each)
                    for method, each in methods
                    if not method.startswith("_") and inspect.isfunction(each)
                )


def is_ours(value):
    error = inspect.isclass(value) and issubclass(value, Exception)
    return (
        not error
        and callable(value)
        and str(getattr(value, "__module__", "")).startswith("gradstats")
    )


def test_no_public_callable_hides_its_options():
    hiding = {
        f"{name}: {parameter}"
        for name, value in callables()
        for parameter in inspect.signature(value).parameters.values()
        if parameter.kind is parameter.VAR_KEYWORD
    }
    assert not hiding
    names = {name for name, _ in callables()}
    assert {".fit", ".capture", "lowrank.warm_start", "GradientStore.append"} <= names


@pytest.mark.parametrize("verb", KEYWORDS)
def test_type_checkers_see_the_fields_of_the_settings(verb):
    """The keywords for type checkers are those of the dataclass, and the function takes them."""
    keywords, settings = KEYWORDS[verb]
    given = {"compressors"} if verb == "replay" else set()  # an argument of its own
    names = {each.name for each in fields(settings)} - given
    assert set(keywords.__annotations__) == names


def test_coordinates_for_type_checkers_are_those_of_the_store():
    assert set(Coordinates.__annotations__) == set(COORDINATES) - {"step"}


def test_help_shows_what_a_function_accepts():
    shown = inspect.signature(gradstats.fit).parameters["families"]
    assert "str | type[Family] | Iterable" in str(shown.annotation)
    assert shown.default is None


def test_the_verbs_are_those_of_their_modules():
    """`typing` finds the Unpack in the functions themselves."""
    for verb, (keywords, _) in KEYWORDS.items():
        function = getattr(gradstats, verb)
        module = importlib.import_module(function.__module__)
        given = eval(function.__annotations__["settings"], vars(module))
        assert typing.get_args(given) == (keywords,)
