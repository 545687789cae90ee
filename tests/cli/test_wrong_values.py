"""Every option of every command and every keyword of every verb: a wrong value is answered.

The message names what was typed: the option on the command line, the argument in Python, and the
value in both.
"""

import inspect
from dataclasses import fields

import pytest
import torch
import typer.main

import gradstats
from gradstats.cli.app import app
from gradstats.cli.commands import takes_value
from gradstats.cli.generated import built
from gradstats.fitting.settings import FitSettings
from gradstats.recording.settings import CaptureSettings
from gradstats.replaying.settings import ReplaySettings
from gradstats.reporting.settings import ReportSettings

NONSENSE, NEGATIVE = "nonsense!", "-7"
COMMANDS = typer.main.get_command(app).commands
WORDS = {  # what a command must be given beside the option
    "demo": [],
    "capture": ["--", "true"],
    "import": ["GRADS", "--out", "imported.zarr"],
    "copy": ["RUN", "copied.zarr"],
    "fit": ["RUN"],
    "replay": ["RUN"],
    "report": ["RUN"],
}
ANY_TEXT = {  # options for which this text is right, or known to be wrong in the training alone
    *(("demo", "--out"), ("capture", "--out"), ("import", "--out"), ("fit", "--out")),
    *(("replay", "--out"), ("report", "--out"), ("capture", "--parameters")),
}


def typed(command):
    """(option, wrong value) of a command."""
    for each in built(COMMANDS[command]).params:
        if each.name in ("help", "json") or not takes_value(each):
            continue
        option = each.opts[0]
        if (command, option) not in ANY_TEXT:
            yield option, NONSENSE
        if isinstance(each.default, int | float):
            yield option, NEGATIVE


CASES = [(command, *case) for command in WORDS for case in typed(command)]


@pytest.fixture(scope="module")
def grads(tmp_path_factory):
    path = tmp_path_factory.mktemp("grads") / "grad_0.pt"
    torch.save({"w": torch.ones(40, 30)}, path)
    return path


@pytest.mark.parametrize(("command", "option", "value"), CASES)
def test_the_command_line_names_the_option_and_the_value(
    call, small_run, grads, tmp_path, monkeypatch, command, option, value
):
    monkeypatch.chdir(tmp_path)
    known = {"RUN": small_run, "GRADS": grads}
    words = [known.get(word, word) for word in WORDS[command]]
    code, shown, err = call(command, f"{option}={value}", *words)
    assert code in (1, 2), err
    assert shown == ""
    assert option in err
    assert value in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_the_cases_have_every_option():
    tried = {(command, option) for command, option, _ in CASES} | ANY_TEXT
    assert {command for command, _ in tried} == set(WORDS)
    assert len(CASES) > 70
    assert {("report", "--budget"), ("capture", "--max-bytes"), ("copy", "--mode")} <= tried


VERBS = {
    "capture": CaptureSettings,
    "fit": FitSettings,
    "replay": ReplaySettings,
    "report": ReportSettings,
}
WRONG = {"parameters": (3, ["w", 3]), "on_summary": (3, "text")}


def keyword_cases():
    for verb, kind in VERBS.items():
        for each in fields(kind):
            for value in WRONG.get(each.name, (NONSENSE, -7, {"a": 1}, object)):
                yield verb, each.name, value


@pytest.mark.parametrize(("verb", "keyword", "value"), list(keyword_cases()))
def test_python_names_the_argument_and_the_value(small_run, tmp_path, verb, keyword, value):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters())
    given = (model, optimizer, tmp_path / "r.zarr") if verb == "capture" else (small_run,)
    needed = {"compressors": "bf16"} if verb == "replay" else {}
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(gradstats, verb)(*given, **{**needed, keyword: value})
    message = str(caught.value)
    assert keyword in message
    assert str(value) in message or repr(value) in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["parameters", "steps", "worker", "point", "device"])
@pytest.mark.parametrize("value", [NONSENSE, -7, object, {"a": 1}])
def test_opening_names_the_argument_and_the_value(small_run, name, value):
    assert name in inspect.signature(gradstats.open).parameters
    with pytest.raises(ValueError, match=name) as caught:
        gradstats.open(small_run, **{name: value})
    assert str(value) in str(caught.value) or repr(value) in str(caught.value)
