"""The options of commands are the fields of their settings."""

import ast
import inspect
from dataclasses import fields

import pytest
import typer.main

from gradstats.cli import analysing, listing, making, options
from gradstats.cli import app as app_module
from gradstats.cli.app import app
from gradstats.cli.generated import SPELLINGS, built
from gradstats.fitting.run import AXES
from gradstats.fitting.settings import FitSettings
from gradstats.kernels.forms import FORMS
from gradstats.recording.settings import CaptureSettings
from gradstats.replaying.settings import ReplaySettings
from gradstats.reporting.settings import ReportSettings
from gradstats.runs.importing import ORDERS

COMMANDS = typer.main.get_command(app).commands
WITHOUT_OPTION = {"on_summary", "local_by", "network"}  # functions, and what has options of parts
BY_NAME = {
    "capture": CaptureSettings,
    "fit": FitSettings,
    "replay": ReplaySettings,
    "report": ReportSettings,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_every_field_has_its_option_with_its_choices(call, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "250")
    code, shown, _ = call(name, "--help")
    assert code == 0
    params = {each.name for each in built(COMMANDS[name]).params}
    for each in fields(BY_NAME[name]):
        if each.name in WITHOUT_OPTION:
            continue
        spelled = each.name in SPELLINGS and SPELLINGS[each.name].name
        assert (spelled or each.name) in params
        separator = "|" if isinstance(each.default, str) else ","
        assert separator.join(each.metadata["choices"]) in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence(name):
    for each in built(COMMANDS[name]).params:
        assert each.help.endswith((".", "…")), each.name


def test_choices_are_those_of_the_library():
    assert tuple(options.Order) == ORDERS
    assert tuple(options.Axis) == AXES
    assert tuple(options.Form) == FORMS


def test_commands_parse_call_one_function_and_print():
    functions = [
        node
        for module in (app_module, making, analysing, listing)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    assert {node.name.rstrip("_") for node in functions} == {*COMMANDS, "program"}
    for node in functions:
        lines = 0 if len(node.body) < 2 else node.end_lineno - node.body[1].lineno + 1
        assert lines <= 20, (node.name, lines)


def test_version(call):
    import gradstats

    assert call("--version") == (0, f"{gradstats.__version__}\n", "")
