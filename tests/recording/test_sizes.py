"""Very many parameters, and very large ones."""

import cProfile
import os
import pstats
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import gradstats
from gradstats.recording import capture, every
from gradstats.runs.health import findings
from gradstats.store import GradientStore
from tests.processes import soaked


def tiny(count):
    """A model of parameters with three elements, whose gradients are told apart."""
    model = nn.ParameterList([nn.Parameter(torch.ones(3)) for _ in range(count)])
    for place, parameter in enumerate(model):
        parameter.grad = torch.tensor([1.0, 2.0, 3.0]) + place
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def calls(work):
    """How many functions are called: what takes long takes many, on any machine."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return pstats.Stats(profile).total_calls


def looked_at(path, names):
    """Ways to look at a run, by name."""
    run = gradstats.open(path)
    stream = run.stream()
    return {
        "open": lambda: gradstats.open(path),
        "row": lambda: stream.read(0),
        "by name": lambda: [stream.read(0, name) for name in names],
        "summaries": lambda: run.summaries(0),
        "parts": run.parts,
        "info": lambda: (findings(run), repr(run)),
    }


def recorded(path, count):
    """Files written and functions called, by what was done."""
    model, optimizer = tiny(count)
    names = [str(place) for place in range(0, count, 50)]
    settings = {"full": every(1), "track": 100, "summary": True, "quiet": True}
    found = {}

    def attach():
        found["handle"] = capture(model, optimizer, path, **settings)

    counts = {"attach": calls(attach), "step": calls(optimizer.step)}
    optimizer.step()
    found["handle"].close()
    counts |= {name: calls(work) for name, work in looked_at(path, names).items()}
    return counts, len(list(Path(path).rglob("*")))


@pytest.mark.slow
def test_nothing_is_quadratic_in_the_number_of_parameters(tmp_path):
    recorded(tmp_path / "first.zarr", 250)  # imports what is imported late
    few, files = recorded(tmp_path / "few.zarr", 250)
    many, as_many = recorded(tmp_path / "many.zarr", 2000)
    assert as_many == files
    for name, count in many.items():
        assert count < 10 * few[name] + 1000, name  # eight times the parameters


SLICE = 2**22


def fill(grad, step):
    """No two neighbours of a slice are equal, nor the gradients of two steps."""
    for start in range(0, len(grad), SLICE):
        part = grad[start : start + SLICE]
        torch.arange(start % 1000, start % 1000 + len(part), out=part).mul_(step + 0.5)


def expected(start, stop, step):
    part = torch.empty(stop - start)
    first = start % 1000
    return torch.arange(first, first + len(part), out=part).mul_(step + 0.5)


def enough(numel, folder):
    """Is there memory for the parameter, its gradient and two rows, and space for the rows?"""
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory > 20 * numel and shutil.disk_usage(folder).free > 10 * numel


@soaked("numel", 5_000_000, 200_000_000)
def test_one_very_large_parameter(tmp_path, numel, record_property):
    if not enough(numel, tmp_path):
        pytest.skip(f"no memory or no space for rows of {numel:,} elements")
    model, path = (
        nn.ParameterDict({"large": nn.Parameter(torch.zeros(numel))}),
        tmp_path / "r.zarr",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model["large"].grad = torch.empty(numel)
    with capture(model, optimizer, path, full=[0, 2], track=1000, quiet=True) as cap:
        for step in range(3):
            fill(model["large"].grad, step)
            optimizer.step()
    assert (cap.stats.full_rows, cap.stats.tracked_rows, cap.stats.dropped) == (2, 3, 0)
    stream, track = (GradientStore.open(path).stream(0, kind) for kind in ("full", "track"))
    for row, step in enumerate([0, 2]):
        for start in range(0, numel, SLICE):
            stop = min(start + SLICE, numel)
            part = stream.read_flat(row, "float32", start, stop)
            assert torch.equal(part, expected(start, stop, step)), (step, start)
    ids = torch.from_numpy(track.element_ids["float32"])
    assert len(ids) == 1000
    for step in range(3):
        exact = (ids % SLICE + (ids - ids % SLICE) % 1000).float() * (step + 0.5)
        assert torch.equal(track.read(step), exact)
    record_property("elements", numel)
    record_property("rows verified", 5)
