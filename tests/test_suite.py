"""What holds of the test suite itself, and of the environment that `make` sets up for it."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="not in a source tree")
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_nothing_is_held_against_the_clock_on_the_wall(path):
    """Neither by an assertion nor by a limit that a busy machine could reach."""
    text = path.read_text(encoding="utf-8")
    if path.name != "waiting.py":
        assert not re.search(r"(perf_counter|monotonic|time\.time)(_ns)?\(", text)
    assert not re.search(r"\b(timeout|poll|join|wait)(=|\()\d", text), "wait for PATIENCE instead"


def needed(name, extras=()):
    """The canonical names of what a distribution needs on this machine, with its own."""
    found, waiting = set(), [(canonicalize_name(name), tuple(extras))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in metadata.requires(name) or ():
            each = Requirement(line)
            wanted = [
                each.marker is None or each.marker.evaluate({"extra": e}) for e in ("", *extras)
            ]
            if any(wanted):
                waiting.append((canonicalize_name(each.name), tuple(sorted(each.extras))))
    return {name for name, _ in found}


def test_the_constraints_name_a_version_of_everything_that_is_installed():
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines}
    assert needed("gradstats", ["dev"]) - {"gradstats"} <= pinned
    assert "pip" in pinned


def test_what_is_installed_fits_together():
    ran = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_help_names_every_target_with_its_text():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    ran = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shown = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines())
    assert sorted(shown) == sorted(phony.split())
    for target, text in shown.items():
        assert re.search(rf"^{target}:.*## {re.escape(text)}$", makefile, re.MULTILINE)
