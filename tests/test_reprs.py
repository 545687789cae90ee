"""What a session prints is short: no `repr` of an object that users hold is a page."""

import math

import pytest
import torch

import gradstats
from gradstats.compressors import Rng, compressor
from gradstats.families import FAMILIES
from gradstats.network import Network
from gradstats.recording import Idle
from gradstats.runs.groups import groups

MOST = 200  # characters
SPECS = ("topk(0.01)", "qsgd", "sign", "bf16", "powersgd", "count-sketch", "co3", "eden", "fp8")
SPECS += ("mxfp4", "3lc", "lossless", "topk(0.1) | qsgd | delta", "qsgd | ans", "randomk(0.1)")


def held(small_run, tmp_path):
    grad = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    run = gradstats.open(small_run)
    model = torch.nn.Linear(50, 40)
    optimizer = torch.optim.SGD(model.parameters())
    yield gradstats.summarize(grad)
    yield gradstats.sidco_threshold(grad, 0.01)
    yield from (run, run.store, run.stream(), run.reader(), next(iter(groups(run))))
    yield from (family.fit(grad) for family in FAMILIES)
    for spec in SPECS:
        member = compressor(spec)
        yield from (member, member.encode(grad, member.init(grad), Rng(0))[0])
    with gradstats.capture(model, optimizer, tmp_path / "r.zarr", quiet=True) as capture:
        yield from (capture, capture.stats, gradstats.every(500), Network(), Idle(0))


def test_a_repr_is_one_short_line(small_run, tmp_path):
    for each in held(small_run, tmp_path):
        shown = repr(each)
        assert len(shown) <= MOST, shown[:300]
        assert "\n" not in shown
        assert " object at 0x" not in shown


def test_a_summary_prints_what_torch_computes():
    grad = torch.tensor([0.0, 1.0, -3.0, 2.0, math.nan, math.inf])
    finite = grad[:4]
    parts = f"mean |g| {finite.abs().mean():.3g}, std {finite.std(correction=0):.3g}, max 3"
    expected = f"<Summary of 6 float32 elements: {parts}, 0.167 of them zero, 2 NaN or inf>"
    assert repr(gradstats.summarize(grad)) == expected


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan], [1e200, -1e200]])
def test_a_summary_without_spread_has_a_repr(values):
    assert "Summary of" in repr(gradstats.summarize(torch.tensor(values, dtype=torch.float64)))
