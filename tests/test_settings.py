"""Settings are spelled out once: signatures, errors and values come from the dataclasses."""

import inspect
from dataclasses import dataclass, fields

import pytest

import gradstats
from gradstats.fitting.settings import FitSettings
from gradstats.recording.settings import CaptureSettings
from gradstats.replaying.settings import ReplaySettings
from gradstats.reporting.settings import ReportSettings
from gradstats.settings import check_fields, from_keywords, setting, several

VERBS = {
    "capture": CaptureSettings,
    "fit": FitSettings,
    "replay": ReplaySettings,
    "report": ReportSettings,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_the_fields_of_its_settings_with_their_defaults(verb):
    shown = inspect.signature(getattr(gradstats, verb)).parameters
    assert "settings" not in shown
    for field in fields(VERBS[verb]):
        if field.name != "compressors" or verb == "report":  # what a replay is about
            assert shown[field.name].default == field.default
            assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_has_its_sentence(verb):
    for field in fields(VERBS[verb]):
        assert field.metadata["help"].endswith("."), field.name


@dataclass(frozen=True)
class Shown:
    axis: str = setting("x", "Which axis.", choices=("x", "y"))
    ratios: tuple[float, ...] = setting((0.1,), "Target ratios.")


@pytest.mark.parametrize(
    ("name", "remedy"), [("axes", "did you mean axis?"), ("zzz", "it has axis, ratios")]
)
def test_a_setting_that_there_is_none_of_is_answered_with_the_nearest(name, remedy):
    with pytest.raises(TypeError, match=f"draw has no setting '{name}'; {remedy}".rstrip("?")):
        from_keywords(Shown, {name: 1}, verb="draw")


def test_choices_hold_for_each_element_of_a_tuple():
    check_fields(Shown("y"))
    with pytest.raises(ValueError, match="axis must be one of x, y, got 'z'"):
        check_fields(Shown(("x", "z")))


@pytest.mark.parametrize(
    ("value", "elements"),
    [("ef", ("ef",)), (0.01, (0.01,)), (["a", "b"], ("a", "b")), (int, (int,)), ((), ())],
)
def test_one_value_counts_as_a_sequence_of_one(value, elements):
    assert several(value) == elements
