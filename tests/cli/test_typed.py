"""What people type: lists with blanks, options of earlier versions, misspelt names."""

import sys

import pytest
import typer.main
from rich.console import Console

import gradstats
from gradstats.cli.app import app
from gradstats.cli.commands import LISTS, RENAMED, joined
from gradstats.cli.generated import built
from gradstats.cli.progress import progress
from gradstats.cli.tables import print_cells
from gradstats.settings import seconds

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example(call, command):
    code, shown, _ = call(command, "--help")
    assert code == 0
    assert f"Example: gradstats {command}" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("RUN --families laplace, dgamma", "RUN --families laplace,dgamma"),
        ("RUN --families laplace ,dgamma , normal", "RUN --families laplace,dgamma,normal"),
        ("RUN --families=laplace, dgamma --json", "RUN --families=laplace,dgamma --json"),
        ("RUN --families laplace, --json", "RUN --families laplace, --json"),
        ("--json RUN --ratios 1%, 0.1%", "--json RUN --ratios 1%,0.1%"),
        ("RUN --out a, b", "RUN --out a, b"),
        ("RUN -- --families a, b", "RUN -- --families a, b"),
    ],
)
def test_lists_may_have_blanks(words, wanted):
    valued = {"--families", "--ratios", "--out"}
    assert joined(words.split(), valued, interspersed=True) == wanted.split()


def test_the_words_of_a_captured_command_are_its_own():
    words = "--shadow topk(0.1), bf16 python train.py --ratios 0.1, 0.2".split()
    expected = ["--shadow", "topk(0.1),bf16", *words[3:]]
    assert joined(words, {"--shadow", "--ratios"}, interspersed=False) == expected


def test_lists_are_options_that_there_are():
    options = {name for each in COMMANDS.values() for p in built(each).params for name in p.opts}
    assert set(LISTS) <= options


def test_a_fit_takes_lists_with_blanks(call, small_run, tmp_path):
    words = ("fit", small_run, "--families", "laplace,", "dgamma", "--ratios", "10%,", "0.01")
    code, shown, err = call(*words, "--steps", "0:1", "--out", tmp_path / "o")
    assert code == 0, err
    assert "dgamma" in shown
    assert "k̂/k at 0.1" in shown


OLD = [(command, old, new) for command, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("command", "old", "new"), OLD)
def test_a_renamed_option_names_the_new_one(call, command, old, new):
    names = {name for each in built(COMMANDS[command]).params for name in each.opts}
    assert new in names
    assert old not in names
    code, _, err = call(command, old, "4", "RUN")
    assert code == 2
    assert f"No such option: {old}; it is called {new} now." in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("fit", "--familes", "t", "RUN"), "did you mean --families?"),
        (("replay", "--compresors", "t", "RUN"), "did you mean --compressors?"),
        (("fitt", "RUN"), "Did you mean 'fit'?"),
        (("compressors", "topkk"), "did you mean topk?"),
        (("families", "laplas"), "did you mean laplace?"),
    ],
)
def test_what_is_misspelt_is_answered_with_the_nearest(call, words, meant):
    code, _, err = call(*words)
    assert code == 2
    assert meant in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("5min", 300), ("5 m", 300), ("1h", 3600), ("1.5min", 90), (20, 20), ("0", 0)],
)
def test_times_are_read_in_their_units(text, expected):
    assert seconds("budget", text) == expected


@pytest.mark.parametrize("text", ["5", "0.5", " 20 "])
def test_a_time_as_text_has_a_unit(call, small_run, text):
    with pytest.raises(ValueError, match=f"budget must have a unit, got '{text}'; write .*min"):
        gradstats.report(small_run, budget=text)
    code, _, err = call("report", small_run, "--budget", text)
    assert code == 2
    assert "--budget: must have a unit" in err


@pytest.mark.parametrize("value", ["soon", "-5s", "5 days", -1, float("nan"), float("inf"), None])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match="budget must be a time such as 90s"):
        seconds("budget", value)


def test_a_size_has_a_unit(call):
    code, _, err = call("capture", "--max-bytes", "20", "--", "true")
    assert code == 2
    assert "--max-bytes: must have a unit, got '20'; write 20GB" in err


def test_a_replay_is_priced_on_the_network_that_is_given(call, small_run, tmp_path):
    words = ("replay", small_run, "--compressors", "bf16", "--feedback", "none")
    words += ("--out", tmp_path / "o")
    _, slow, _ = call(*words, "--network-workers", "4", "--network-gbits", "1")
    assert "exchange_seconds for 4 workers on 1 Gbit/s links" in slow
    code, fast, err = call(*words, "--network-gbits", "100")
    assert code == 0, err
    assert "8 workers on 100 Gbit/s links" in fast
    assert slow.splitlines()[2] != fast.splitlines()[2]


def test_a_demo_says_what_is_missing_before_it_trains(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    code, _, err = call("demo", "--quick", "--out", tmp_path / "d.zarr")
    assert code == 1
    assert "pip install 'gradstats[analysis]'" in err
    assert not list(tmp_path.iterdir())


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


def test_progress_that_is_piped_is_a_line_every_ten_seconds(tmp_path):
    clock, path = Clock(), tmp_path / "err"
    with path.open("w") as file, progress(Console(file=file, width=40), clock) as advance:
        for done in range(35):
            clock.now = float(done)
            advance("replay [topk]", done * 1000, 35_000)
    expected = [f"replay [topk]: {n},000 of 35,000, {n} s" for n in (10, 20, 30)]
    assert path.read_text().splitlines() == expected


def test_a_terminal_gets_a_bar_and_no_lines(tmp_path):
    clock, path = Clock(), tmp_path / "err"
    with path.open("w") as file:
        console = Console(file=file, force_terminal=True, width=60)
        with progress(console, clock) as advance:
            clock.now = 20.0
            advance("replay", 1, 2)
    assert " of " not in path.read_text()


NAMES = ["name", "a", "b", "sentence"]
CELLS = [["x" * 30, "1.25", "7", "this is a long sentence about a row"], ["y", "2", "3", "no"]]


def printed(path, **settings):
    with path.open("w") as file:
        print_cells(Console(file=file, **settings), "Title", NAMES, CELLS)
    return path.read_text()


def test_a_piped_table_is_whole_and_plain(tmp_path):
    shown = printed(tmp_path / "t", width=20)
    assert "x" * 30 + "  1.25  7  this is a long sentence about a row" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [30, 45, 60, 200])
def test_a_table_at_a_terminal_fits_and_names_what_is_left_out(tmp_path, width):
    shown = printed(tmp_path / "t", width=width, force_terminal=True, color_system=None)
    lines = shown.splitlines()
    table = lines[: next((i for i, line in enumerate(lines) if line.startswith("…")), None)]
    assert all(len(line) <= width for line in table)
    text = "".join(shown.split())
    shown_or_named = [name for name in NAMES if name in text]
    assert shown_or_named == NAMES
    assert "x" * 30 in text


def test_help_and_errors_that_are_piped_have_no_boxes(call):
    for words in (("--help",), ("fit", "--help"), ("fit", "--nonsense")):
        call_out = "".join(call(*words)[1:])
        assert "\x1b" not in call_out
        assert "╭" not in call_out
