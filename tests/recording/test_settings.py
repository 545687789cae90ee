"""The settings of a recording stand once: the keywords of `capture` are their fields."""

import inspect
from dataclasses import fields

import pytest
from torch import nn
from torch.optim import SGD

from gradstats.recording import capture
from gradstats.recording.settings import CaptureSettings
from gradstats.store import GradientStore

FIELDS = {each.name: each.default for each in fields(CaptureSettings)}
# what users wrote before the settings were one value
KEYWORDS = """full track summary on_summary shadow weights at parameters max_bytes if_exists
    when_full local_by start_step seed quiet""".split()


def test_the_keywords_of_capture_are_the_fields_with_their_defaults():
    keywords = {
        each.name: each.default
        for each in inspect.signature(capture).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    }
    assert keywords == FIELDS
    assert list(keywords) == KEYWORDS


def test_every_keyword_is_described():
    described = [line.split(":")[0].strip() for line in capture.__doc__.splitlines()]
    assert [word for word in described if word in FIELDS] == KEYWORDS
    for each in fields(CaptureSettings):
        assert each.metadata["help"].endswith("."), each.name


def test_an_unknown_keyword_names_the_one_that_is_like_it(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters())
    with pytest.raises(TypeError, match=r"^capture has no setting 'trak'; did you mean track\?$"):
        capture(model, optimizer, tmp_path / "x", trak=5)
    with pytest.raises(TypeError, match=r"capture has no setting 'zzz'; it has full, track, summ"):
        capture(model, optimizer, tmp_path / "x", zzz=5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'path'"):
        capture(model, optimizer=optimizer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"if_exists": "maybe"}, "if_exists must be one of error, resume, overwrite, got 'maybe'"),
        ({"when_full": "wait"}, "when_full must be one of block, drop, thin, got 'wait'"),
        ({"local_by": "magic"}, "local_by must be one of hooks, comm_hook, got 'magic'"),
        ({"at": "global"}, "at must be auto or some of .*got 'global'"),
        ({"max_bytes": "x"}, "max_bytes must be a positive size such as '20GB', got 'x'"),
        ({"track": -1}, "track must be a number of elements from 1, or 0 for none, got -1"),
        ({"track": 0, "full": None}, "track must be on .* both off, got 0"),
        ({"track": 0, "shadow": ["bf16"]}, "track must be on for shadow compressors, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(given, message):
    with pytest.raises(ValueError, match=message):
        CaptureSettings(**given)


def test_steps_may_come_from_an_iterator_that_can_be_read_once():
    settings = CaptureSettings(full=iter([2, 5]))
    assert [step for step in range(9) if settings.full(step)] == [2, 5]


def test_the_settings_are_in_the_provenance(tmp_path):
    model = nn.Linear(2, 2)
    at_summary = lambda step, summaries: None  # noqa: E731
    path = tmp_path / "run.zarr"
    optimizer = SGD(model.parameters())
    capture(model, optimizer, path, track=3, on_summary=at_summary, shadow=("bf16",)).close()
    written = GradientStore.open(path).provenance["settings"]
    assert written["full"] == "every(500)"
    assert (written["track"], written["shadow"], written["max_bytes"]) == (3, ["bf16"], "20GB")
    assert written["on_summary"].endswith("<lambda>")
    assert set(written) == set(FIELDS)
