"""What is not well is named, and nothing else."""

import pytest
import torch
from typer.testing import CliRunner

import gradstats
from gradstats.cli.app import app
from gradstats.runs.health import findings
from gradstats.store import GradientStore


@pytest.fixture
def path(tmp_path):
    path, generator = tmp_path / "run.zarr", torch.Generator().manual_seed(2)
    with GradientStore.create(path) as store:
        for step in range(40):
            grads = {
                name: torch.randn(50, generator=generator)
                for name in ("well", "zero", "once", "nan", "burst", "late")
            }
            grads["zero"].zero_()
            grads["once"] *= step == 39
            grads["burst"] *= 100 if step > 35 else 1
            if step == 39:
                grads["nan"][3:5] = torch.nan
            if 0 < step < 39:
                del grads["late"]
            store.append(step, grads)
    return path


def test_the_dead_the_broken_and_the_exploding_are_named(path):
    found = [(one.parameter, one.state) for one in findings(gradstats.open(path))]
    assert found == [("zero", "dead"), ("nan", "not finite"), ("burst", "exploding")]
    details = {one.parameter: one.detail for one in findings(gradstats.open(path))}
    assert details["nan"] == "NaN or inf in 1 rows, first 2 of 50 elements at step 39"


def test_info_lists_them(path):
    output = CliRunner().invoke(app, ["info", str(path)]).output
    assert "zero: dead, a gradient in 16 of 16 rows" in output
    assert "burst: exploding" in output
    assert "well:" not in output
