"""Gradients at the ends of the range lose no more than ordinary ones; the oracle is float64."""

import math
from dataclasses import replace

import pytest
import torch

from gradstats.compressors import COMPRESSORS, Rng, compressor, compressors, from_bytes
from gradstats.exchange import simulate

pytestmark = pytest.mark.slow

LEAST, MOST = 2.0**-126, torch.finfo(torch.float32).max
NORMAL = torch.randn(40, 60, generator=torch.Generator().manual_seed(5)).clamp(-3, 3) / 3
# settings that take other paths
SETTINGS = [
    "eden(bits=1)",
    "eden(bits=4, unbiased=False)",
    "fp8(e5m2)",
    "fp8(bucket=128)",
    "qsgd(bits=8, norm=max, bucket=0)",
    "co3(fp8)",
    "affine(stochastic=True)",
    "count-sketch(estimate=mean)",
    "randomk(0.1, scaled=True)",
    "topk(0.1) | qsgd(bits=4)",
    "topk(0.1) | eden",
    "twoshot(nvfp4)",
    "twoshot(eden, second=bf16)",
    "ring(fp8)",
]
EVERY = [str(each) for name in COMPRESSORS for each in compressors(name, [0.1])] + SETTINGS
LARGEST = ["lossless", "topk(1.0)", "qsgd(norm=max)", "fp8", "sign"]
EXACT = ["lossless", "topk(1.0)", "affine", "qsgd(norm=max)"]
# fp16 has a range of its own, and signs have no scale
RELATIVE = [spec for spec in EVERY if spec not in ("fp16", "signum")]


def encoded(spec, grad):
    member = compressor(spec)
    return member.encode(grad, member.init(grad), Rng(seed=3))[0]


def error(spec, grad):
    """‖x - C(x)‖/‖x‖ in float64."""
    x = grad.double().reshape(-1)
    return float((x - encoded(spec, grad).decode().double()).norm() / x.norm())


@pytest.mark.parametrize("k", [-123, -100, -76, 59, 124, 126, 127])
@pytest.mark.parametrize("spec", RELATIVE)
def test_the_error_is_that_of_ordinary_gradients(spec, k):
    """A little rounding may decide which elements are kept; a norm that is capped loses less."""
    assert error(spec, NORMAL * 2.0**k) <= 1.05 * error(spec, NORMAL) + 1e-6


@pytest.mark.parametrize("scale", [1e-37, 1e-23, 5e17, 1e38])
@pytest.mark.parametrize("spec", EVERY)
def test_bytes_say_all_of_an_extreme_gradient(spec, scale):
    payload = encoded(spec, NORMAL * scale)
    assert torch.equal(from_bytes(payload.to_bytes()).decode(), payload.decode())


@pytest.mark.parametrize("scale", [1e-23, 1.0, 5e17])
def test_eden_loses_what_its_quantiser_loses(scale):
    """D/(1 - D) of the energy at 2 bits, D = 0.1175."""
    grad = torch.randn(65_536, generator=torch.Generator().manual_seed(1)) * scale
    assert error("eden", grad) ** 2 == pytest.approx(0.1175 / (1 - 0.1175), rel=0.03)


@pytest.mark.parametrize("scale", [1.2e-38, 1e-37, 3.7e-37, 1.0, 1e38, 3.4e38])
@pytest.mark.parametrize(("name", "promise"), [("e4m3", 2.0**-4), ("e5m2", 2.0**-3)])
def test_fp8_keeps_its_promise_of_every_normal_element(name, promise, scale):
    grad = torch.logspace(0, -2, 500, dtype=torch.float64) * scale
    x = grad.float().double()
    found = encoded(f"fp8({name})", grad.float()).decode().double()
    assert float(((found - x).abs() / x).max()) <= promise * (1 + 1e-5)


def test_a_step_of_a_training_whose_classes_differ_by_50_logits():
    """All 64,000 weights were NaN: most rows of the gradient are 1e-22 of the largest."""
    weights = torch.zeros(1000, 64)
    bias = torch.zeros(1000)
    bias[0] = 50.0
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(2))
    share = (inputs @ weights.T + bias).softmax(1)
    assert float(share[:, 1:].max()) < 1e-20
    grad = (share - torch.nn.functional.one_hot(torch.zeros(512).long(), 1000)).T @ inputs / 512
    for spec in ("eden", "eden(bits=4, unbiased=False)", "ef(eden)", "thc", "fp8", "nvfp4"):
        member, update = compressor(spec), weights
        state = member.init(grad)
        for step in range(3):
            payload, state = member.encode(grad, state, replace(Rng(), step=step))
            update = update - payload.decode().view(1000, 64)
        assert update.isfinite().all(), spec


def test_blocks_of_very_different_sizes_are_each_as_exact():
    """One block of 1e-22 beside one of 1 loses no larger share of itself."""
    generator = torch.Generator().manual_seed(4)
    grad = torch.randn(16 * 4096, generator=generator)
    sizes = torch.logspace(-30, 10, 16).repeat_interleave(4096)
    found = encoded("eden(bits=4)", grad * sizes).decode().double() / sizes.double()
    errors = (found - grad.double()).view(16, -1).norm(dim=1) / grad.double().view(16, -1).norm(
        dim=1
    )
    assert float(errors.max()) < 1.1 * float(errors.min())


@pytest.mark.parametrize("spec", ["qsgd", "nuqsgd", "qsgd-shared"])
def test_a_norm_that_is_capped_leaves_the_method_unbiased(spec):
    """The norm of 512 largest numbers is 22 of them: what is decoded stays their mean."""
    grad = torch.full((512,), MOST).mul_(torch.tensor([1.0, -0.5]).repeat(256))
    member = compressor(spec)
    draws = [member.encode(grad, None, Rng(step=step))[0].decode().double() for step in range(200)]
    mean = torch.stack(draws).mean(0) / grad.double()
    assert float(mean.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("workers", [2, 3, 7, 8])
@pytest.mark.parametrize("spec", [*LARGEST, "twoshot(fp8)", "twoshot(none)", "ring(fp8)"])
def test_the_mean_of_the_largest_numbers_is_the_largest(spec, workers):
    """A third of it added up three times can round beyond the range."""
    grad = torch.full((500,), MOST)
    member = compressor(spec)
    steps = simulate(
        [
            member.exchange(grad.clone(), member.init(grad), Rng(worker=w, workers=workers))
            for w in range(workers)
        ]
    )
    assert torch.allclose(steps[0].update, grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spec", [*EXACT, "twoshot(none)", "ring(none)"])
def test_updates_of_16_bits_are_summed_in_32(spec):
    """1 and 2047 times 1/1024: in float16 the small ones would be lost one by one."""
    member = compressor(spec)
    grads = [torch.full((64,), 2048.0 if w == 0 else 1.0).half() for w in range(8)]
    steps = simulate(
        [
            member.exchange(grad, member.init(grad), Rng(worker=w, workers=8))
            for w, grad in enumerate(grads)
        ]
    )
    assert torch.equal(steps[0].update, torch.full((64,), (2048 + 7) / 8).half())


@pytest.mark.parametrize("spec", EVERY)
def test_float64_beyond_float32_saturates(spec):
    for scale in (1e100, 1e300, 1e-60, 1e-300):
        for shape in ((40, 60), (2400,)):
            decoded = encoded(spec, (NORMAL.double() * scale).view(shape)).decode()
            assert decoded.isfinite().all(), (scale, shape)


@pytest.mark.parametrize("k", [-1000, -500, 500, 1000])
@pytest.mark.parametrize("spec", [each for each in EVERY if "(0.1" in each and "|" not in each])
def test_selection_does_not_depend_on_the_unit_of_float64(spec, k):
    ordinary, extreme = (encoded(spec, NORMAL.double() * 2.0**each) for each in (0, k))
    assert getattr(extreme, "indices", None) is not None
    assert torch.equal(extreme.indices, ordinary.indices)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [1e-37, 1e38])
@pytest.mark.parametrize("spec", [each for each in EVERY if "count-sketch" not in each])
def test_what_is_not_finite_is_not_hidden_among_extreme_elements(spec, value, scale):
    grad = NORMAL * scale
    grad[:, ::3] = value
    assert not encoded(spec, grad).decode().isfinite().all()
