"""The run that ships with the package."""

import tomllib
from pathlib import Path

import pathspec
import pytest
import torch

import gradstats
from gradstats.compressors import TopK

PACKAGE = Path(gradstats.__file__).parent
FILE = "runs/examples/resnet20.zarr.zip"


def test_it_has_whole_rows_and_a_track_of_resnet20():
    run = gradstats.load_example()
    assert run.store.provenance["model"] == "ResNet20"
    assert sum(parameter.numel for parameter in run.store.parameters) == 269_722
    full = dict(run.gradients())
    tracked = dict(run.gradients("track"))
    assert len(full) == 2
    assert run.consecutive == "track"
    ids = torch.from_numpy(run.stream("track").element_ids["bfloat16"])
    for step, grad in full.items():
        assert torch.isfinite(grad).all()
        assert grad.abs().max() > 0
        assert torch.equal(grad[ids], tracked[step])


class Mine(TopK):
    """A user's own method."""


def test_it_can_be_replayed_with_memory_and_without():
    rows = gradstats.replay(
        gradstats.load_example("resnet20"), ["ef(topk(0.01))", Mine(ratio=0.1), "none"]
    )
    assert set(rows["status"]) == {"ok"}
    assert rows.loc[rows["feedback"] == "ef", "step"].diff().dropna().eq(1).all()
    exact = rows.loc[rows["compressor"] == "none", "error"]
    assert len(exact) == 2
    assert exact.eq(0).all()


def test_a_name_that_is_none_is_refused_by_those_there_are():
    with pytest.raises(ValueError, match=r"name must be one of .*resnet20.*, got 'resnet50'"):
        gradstats.load_example("resnet50")


def test_the_wheel_holds_it_in_two_megabytes():
    assert (PACKAGE / FILE).stat().st_size <= 2_000_000
    project = PACKAGE.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not in a source tree")
    # hatchling takes all files of the packages but those that git ignores or a rule leaves out
    build = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["gradstats"]}
    assert set(build) == {"targets"}
    ignored = pathspec.PathSpec.from_lines(
        "gitignore", (PACKAGE.parent / ".gitignore").read_text().splitlines()
    )
    assert not ignored.match_file(f"gradstats/{FILE}")
    assert ignored.match_file("gradstats/run.zarr/zarr.json")  # the rules were read
