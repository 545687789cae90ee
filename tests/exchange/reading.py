"""How often the hook makes the host wait for the device, which ordinary tensors play."""

import torch

from gradstats import kernels
from gradstats.compressors import COMPRESSORS, compressors
from gradstats.ddp_hooks import CompressorState
from gradstats.testing import counting_host_reads
from tests.exchange.nets import Bucket

BARE = [str(each) for spec in COMPRESSORS for each in compressors(spec, [0.05])]
MORE = [
    "topk(0.05) | raw",
    "topk(0.05) | packed",
    "topk(0.05) | bitmap",
    "ef(mxfp8)",
    "ef(topk(0.05) | bitmap)",
    "velocity(topk(0.05))",
    "ef(twoshot(nvfp4))",
    "affine(4)",
    "twoshot(mxfp8)",
    "twoshot(fp8)",
    "twoshot(affine(4))",
    "twoshot(eden)",
    "twoshot(qsgd)",
    "twoshot(sign)",
    "ring(mxfp8)",
]


def of_the_hook(worker, workers):
    """Reads, copies to the device, and where, of the second step of every method."""
    return {spec: second_step(spec, worker) for spec in SPECS}


def has_limit(spec):
    contract = compressors(spec, [])[0].contract
    return contract.host_reads is not None and "loss" not in contract.needs


def second_step(spec, worker):
    bucket = Bucket((64, 64), (50,))
    generator = torch.Generator().manual_seed(worker)
    with kernels.use("eager"):
        state = CompressorState(None, spec, min_numel=8)
        with counting_host_reads(bucket.buffer()) as counted:
            for _ in range(2):
                bucket.buffer().copy_(torch.randn(4146, generator=generator))
                before = counted.reads, counted.uploads, len(counted.sites)
                state.reduce(bucket)
    reads, uploads, sites = before
    return counted.reads - reads, counted.uploads - uploads, counted.sites[sites:]


SPECS = [spec for spec in sorted({*BARE, *MORE}) if has_limit(spec)]
