"""A folder of its own for every mistake."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.mistakes.desk import lay


@pytest.fixture
def desk(made_once, tmp_path, monkeypatch) -> Path:
    """A copy of the folder with the runs, which is also the current directory."""
    folder = shutil.copytree(made_once("desk", lay), tmp_path / "desk")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder
