"""The result of a bucket holds the mean of this step alone, however the one before was written."""

import pytest
import torch

from gradstats import kernels
from gradstats.compressors import Rng, compressor
from gradstats.exchange import fused, simulate
from gradstats.exchange.layouts import layout_of
from gradstats.exchange.parameter_names import Names
from gradstats.ratios import DenseRule
from tests.exchange.nets import Bucket

SHAPES = ((40, 30), (30,), (20, 40), (40,), (10, 20))


def layout(together=True, scaled=False, dtype=torch.float32):
    bucket = Bucket(*SHAPES, dtype=dtype)
    return layout_of(bucket, Names(), DenseRule(100), together=together, scaled=scaled)


def steps_of(laid_out, specs, scale=1.0):
    """The steps of a worker with random gradients, by the specs of the units."""
    generator = torch.Generator().manual_seed(len(specs))
    buffer = laid_out.buffer
    buffer.copy_(torch.randn(buffer.numel(), generator=generator))
    assert laid_out.read(scale)
    methods = [compressor(spec) for spec in specs]
    pairs = zip(methods, laid_out.units, strict=True)
    exchanges = [m.exchange(unit.whole, m.init(unit.whole), Rng()) for m, unit in pairs]
    return simulate([fused(exchanges)])[0]


def expected(laid_out, steps, scale=1.0):
    out = torch.empty_like(laid_out.buffer)
    for unit, step in zip(laid_out.units, steps, strict=True):
        start, flat = 0, step.update.reshape(-1) * scale
        for grad in unit.grads:
            part = flat[start : start + grad.numel()]
            out[grad.storage_offset() :][: grad.numel()] = part
            start += grad.numel()
    return out


@pytest.mark.parametrize("form", ["auto", "eager"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_leaves_its_own_mean_alone(form, together, dtype):
    laid_out = layout(together, dtype=dtype)
    dense = sum(unit.dense for unit in laid_out.units)
    with kernels.use(form):
        for spec in ("topk(0.1)", "topk(0.05)", "qsgd", "topk(0.2)", "topk(0.1)", "none"):
            specs = [spec] * (len(laid_out.units) - dense) + ["none"] * dense
            steps = steps_of(laid_out, specs)
            assert laid_out.write(steps, 1.0)
            assert torch.equal(laid_out.result, expected(laid_out, steps)), spec


def test_a_result_that_was_written_to_is_cleared_whole():
    laid_out = layout()
    specs = ["topk(0.1)", "none", "none"]
    laid_out.write(steps_of(laid_out, specs), 1.0)
    laid_out.result.add_(1)
    steps = steps_of(laid_out, specs)
    laid_out.write(steps, 1.0)
    assert torch.equal(laid_out.result, expected(laid_out, steps))


def test_a_loss_scale_is_divided_out_and_multiplied_again():
    laid_out = layout(scaled=True)
    for spec in ("topk(0.1)", "none"):
        steps = steps_of(laid_out, [spec, "none", "none"], scale=8.0)
        assert laid_out.write(steps, 8.0)
        assert torch.equal(laid_out.result, expected(laid_out, steps, scale=8.0))


@pytest.mark.parametrize("form", ["auto", "eager"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spec", ["topk(0.1)", "none", "bf16"])
def test_an_update_that_is_not_finite_is_seen(form, value, spec):
    laid_out, specs = layout(), [spec, "none", "none"]
    with kernels.use(form):
        steps = steps_of(laid_out, specs)
        held = steps[0].sent.kept.values if spec == "topk(0.1)" else steps[0].update.view(-1)
        held[0] = value
        assert not laid_out.write(steps, 1.0)
        assert laid_out.write(steps_of(laid_out, specs), 1.0)
