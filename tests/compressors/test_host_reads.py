"""How often methods read from their device: what they declare, and what wrappers make of it."""

import pytest
import torch

from gradstats.compressors import Part, PerParameter, Rng, compressor
from gradstats.kernels import use
from gradstats.testing import counting_host_reads, gradients
from gradstats.testing.device_laws import count_reads, host_reads

DECLARED = {
    "none": 0,
    "bf16": 0,
    "qsgd": 0,
    "sign": 0,
    "natural": 0,
    "terngrad": 0,
    "fp8": 1,
    "mxfp8": 1,
    "mxfp4": 1,
    "nvfp4": 1,
    "affine": 1,
    "eden": 1,
    "topk(0.01)": 1,
    "exact-threshold(0.01)": 2,
    "randomk(0.01)": 1,
    "powersgd": 3,
    "sidco-e(0.01)": 5,
    "co3": None,
    "lossless": None,
    "qsgd | ans": None,
    "topk(0.01) | mxfp4": 2,
    "topk(0.01) | packed": 0,
    "topk(0.01) | golomb": 1,
    "exact-threshold(0.01) | qsgd | bitmap": 1,
    "stc(0.01) | raw": 0,
    "randomk(0.01) | qsgd": 1,
    "stc(0.01)": 1,
    "qsparse(0.01)": 1,
    "ef(mxfp8)": 1,
    "ef21(qsgd)": 0,
    "lowpass(clt-k(0.01))": 2,
    "velocity(topk(0.01), clip=1.0)": 1,
    "warmup(topk(0.01))": 1,
    "adaquant(qsgd)": 0,
    "twoshot(qsgd)": 0,
    "twoshot(mxfp8)": 2,
    "twoshot(nvfp4, second=bf16)": 1,
    "ef(twoshot(eden))": 2,
    "ring(mxfp8)": 1,
}
# members have the law in test_laws; these are made of members
MADE = [spec for spec in DECLARED if "(" in spec and DECLARED[spec] is not None]


@pytest.mark.parametrize("spec", DECLARED)
def test_declared_numbers(spec):
    assert compressor(spec).contract.host_reads == DECLARED[spec]


# short float64 gradients make SIDCo read more, triton reads the number of candidates
MORE = ("sidco", "exact-threshold", "clt-k")
TIGHT = [spec for spec in MADE if not any(name in spec for name in MORE)]


@pytest.mark.parametrize("spec", TIGHT)
def test_a_normal_gradient_costs_what_is_declared_and_no_read_less(spec):
    grad = gradients.ordinary()["normal"]
    with use("eager"):
        counted = count_reads(compressor(spec), grad.clone(), Rng())
    assert counted.reads == DECLARED[spec]


@pytest.mark.parametrize("spec", ["ef(mxfp8)", "velocity(topk(0.01), clip=1.0)", "twoshot(nvfp4)"])
def test_the_law_holds_of_wrappers_in_every_dtype(spec):
    for name in ("float64", "bfloat16", "zero", "one element", "empty"):
        grad = gradients.awkward()[name].clone()
        facts = list(host_reads(compressor(spec), grad, Rng()))
        assert len(facts) == 2
        assert all(holds for _, holds in facts), facts


def test_each_compressed_parameter_reads():
    parts = Part("a", 1500, shape=(30, 50)), Part("b", 20, dense=True), Part("c", 1200)
    member = PerParameter(compressor("mxfp8"), parts)
    assert member.contract.host_reads == 2
    assert PerParameter(compressor("lossless"), parts).contract.host_reads is None
    with use("eager"):
        counted = count_reads(member, torch.randn(2720), Rng())
    assert counted.reads == 2


@pytest.mark.parametrize("spec", ["powersgd", "acp-sgd", "svd", "atomo", "count-sketch"])
def test_what_was_decoded_is_decoded_again_without_a_read(spec):
    member, grad = compressor(spec), torch.randn(24, 50)
    with use("eager"), counting_host_reads(grad) as counted:
        payload, _ = member.encode(grad, member.init(grad), Rng())
        first, before = payload.decode(), counted.reads
        again = payload.decode()
    assert counted.reads == before <= member.contract.host_reads
    assert torch.equal(first, again)
