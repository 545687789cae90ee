"""Every command line in the README and the docs uses commands and options that are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from gradstats.cli.app import app
from gradstats.cli.generated import built

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {name: built(command) for name, command in typer.main.get_command(app).commands.items()}
OPTIONS = {
    name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    for name, command in COMMANDS.items()
}
# of other programs, which the pages name as such
OTHERS = {"--help", "--version", "--extra-index-url", "--index-url", "--max-restarts", "--quick"}


def command_lines(text):
    """(command, words) of every `gradstats …` in a fenced block or between backticks."""
    fenced = "\n".join(re.findall(r"(?ms)^```(?:\w+)?\n(.*?)^```", text)).replace("\\\n", " ")
    inline = re.findall(r"`(gradstats [a-z][^`\n]*)`", re.sub(r"(?ms)^```.*?^```", "", text))
    lines = [line.strip().removeprefix("$ ") for line in fenced.splitlines()]
    for line in [*lines, *inline]:
        if re.match(r"gradstats [a-z-]", line):
            words = shlex.split(line, comments=True)[1:]
            yield words[0], words[1 : words.index("--")] if "--" in words else words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_is_there(page):
    text = page.read_text(encoding="utf-8")
    for command, words in command_lines(text):
        if command.startswith("--"):
            continue
        assert command in COMMANDS, command
        asked = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
        assert not asked - OPTIONS[command] - {"--help"}, (command, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_a_sentence_names_is_one_of_some_command(page):
    prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    named = set(re.findall(r"`(--[a-z][a-z-]*)", prose))
    assert not named - set().union(*OPTIONS.values()) - OTHERS


def test_the_pages_show_commands_at_all():
    shown = {command for page in PAGES for command, _ in command_lines(page.read_text())}
    assert {"capture", "import", "copy", "info", "fit", "replay", "report"} <= shown


def test_an_option_that_is_not_there_would_be_seen():
    text = "```\n$ gradstats fit run.zarr \\\n  --by model   # a comment --x\n```\n"
    assert list(command_lines(text)) == [("fit", ["run.zarr", "--by", "model"])]
    assert "--by" not in OPTIONS["fit"]
    assert "--group-by" in OPTIONS["fit"]
