"""Gradient compressors, one a file. To add one: write its file, add a line to `COMPRESSORS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gradstats.compressors.acp_sgd import ACPSGD
from gradstats.compressors.adacomp import AdaComp
from gradstats.compressors.adaquant import AdaQuant
from gradstats.compressors.affine import Affine
from gradstats.compressors.atomo import ATOMO
from gradstats.compressors.base import (
    AllGather,
    AllReduce,
    Bound,
    Broadcast,
    Collective,
    Compressor,
    Contract,
    Step,
)
from gradstats.compressors.bf16 import BF16, FP16
from gradstats.compressors.chunk_topk import ChunkTopK
from gradstats.compressors.clt_k import CLTK
from gradstats.compressors.co3 import CO3
from gradstats.compressors.count_sketch import CountSketch
from gradstats.compressors.decoding import from_bytes
from gradstats.compressors.dgc import DGC
from gradstats.compressors.dynamic_tree import DynamicTree
from gradstats.compressors.eden import EDEN
from gradstats.compressors.ef21 import EF21
from gradstats.compressors.exact_threshold import ExactThreshold
from gradstats.compressors.feedback import ErrorFeedback, Memory
from gradstats.compressors.fp8 import FP8
from gradstats.compressors.gaussiank import GaussianK
from gradstats.compressors.grammar import build
from gradstats.compressors.granularity import MIN_NUMEL, Part, PerParameter
from gradstats.compressors.index_codes import CODES
from gradstats.compressors.intsgd import IntSGD
from gradstats.compressors.lloyd_max import LloydMax
from gradstats.compressors.lossless import Lossless
from gradstats.compressors.low_pass import LowPass
from gradstats.compressors.mstopk import MSTopK
from gradstats.compressors.mx import MX
from gradstats.compressors.natural import NUQSGD, Natural
from gradstats.compressors.none import NoCompression
from gradstats.compressors.nvfp4 import NVFP4
from gradstats.compressors.onebit import BinGrad, OneBit
from gradstats.compressors.orq import ORQ
from gradstats.compressors.payloads import Payload
from gradstats.compressors.pipe import Pipe, Stage
from gradstats.compressors.powersgd import PowerSGD
from gradstats.compressors.qsgd import QSGD
from gradstats.compressors.qsparse import QSparse
from gradstats.compressors.randomk import RandomK
from gradstats.compressors.redsync import RedSync, TrimmedRedSync
from gradstats.compressors.rng import Rng
from gradstats.compressors.sbc import SBC, stc
from gradstats.compressors.shared_scale import SharedQSGD, SharedTernGrad
from gradstats.compressors.sidco import SIDCo
from gradstats.compressors.sign import ScaledSign
from gradstats.compressors.signum import Signum
from gradstats.compressors.stages import EntropyCode, IndexCode
from gradstats.compressors.svd import SVD
from gradstats.compressors.terngrad import TernGrad
from gradstats.compressors.thc import THC
from gradstats.compressors.threelc import ThreeLC
from gradstats.compressors.threshold import HardThreshold
from gradstats.compressors.topk import TopK
from gradstats.compressors.velocity import Velocity
from gradstats.compressors.wangni import Wangni
from gradstats.compressors.warmup import WarmUp
from gradstats.compressors.wire import PayloadError

__all__ = [
    "COMPRESSORS",
    "MEMORIES",
    "MIN_NUMEL",
    "POLICIES",
    "REFERENCE",
    "STAGES",
    "SUPPORTED",
    "AllGather",
    "AllReduce",
    "Bound",
    "Broadcast",
    "Collective",
    "Compressor",
    "Contract",
    "ErrorFeedback",
    "ExactThreshold",
    "Memory",
    "Part",
    "Payload",
    "PayloadError",
    "PerParameter",
    "Pipe",
    "Rng",
    "Stage",
    "Step",
    "compressor",
    "compressors",
    "from_bytes",
]

SUPPORTED: dict[str, Callable[..., Compressor]] = {
    "none": NoCompression,
    "bf16": BF16,
    "fp16": FP16,
    "topk": TopK,
    "exact-threshold": ExactThreshold,
    "randomk": RandomK,
    "threshold": HardThreshold,
    "dgc": DGC,
    "sidco-e": partial(SIDCo, variant="e"),
    "sidco-gp": partial(SIDCo, variant="gp"),
    "sidco-p": partial(SIDCo, variant="p"),
    "qsgd": QSGD,
    "sign": ScaledSign,
    "fp8": FP8,
    "mxfp8": partial(MX, format="mxfp8"),
    "mxfp4": partial(MX, format="mxfp4"),
    "nvfp4": NVFP4,
    "eden": EDEN,
    "co3": CO3,
    "powersgd": PowerSGD,
}
REFERENCE: dict[str, Callable[..., Compressor]] = {
    "redsync": RedSync,
    "redsync-trimmed": TrimmedRedSync,
    "gaussiank": GaussianK,
    "mstopk": MSTopK,
    "adacomp": AdaComp,
    "wangni": Wangni,
    "stc": stc,
    "sbc": SBC,
    "chunk-topk": ChunkTopK,
    "qsparse": QSparse,
    "terngrad": TernGrad,
    "natural": Natural,
    "nuqsgd": NUQSGD,
    "onebit": OneBit,
    "signum": Signum,
    "bingrad": BinGrad,
    "orq": ORQ,
    "dynamic-tree": DynamicTree,
    "affine": Affine,
    "lloyd-max": LloydMax,
    "3lc": ThreeLC,
    "lossless": Lossless,
    "acp-sgd": ACPSGD,
    "svd": SVD,
    "atomo": ATOMO,
    "qsgd-shared": SharedQSGD,
    "terngrad-shared": SharedTernGrad,
    "clt-k": CLTK,
    "thc": THC,
    "intsgd": IntSGD,
    "count-sketch": CountSketch,
}
COMPRESSORS = SUPPORTED | REFERENCE
MEMORIES: dict[str, Callable[..., Compressor]] = {
    "ef": ErrorFeedback,
    "ef21": EF21,
    "lowpass": LowPass,
    "velocity": Velocity,
}
POLICIES: dict[str, Callable[..., Compressor]] = {"warmup": WarmUp, "adaquant": AdaQuant}
STAGES: dict[str, Callable[..., Stage]] = {
    **{code: partial(IndexCode, code) for code in CODES},
    "ans": EntropyCode,
}


def compressor(spec: str | Compressor) -> Compressor:
    """Make a compressor from the grammar; an instance is returned as it is.

    Args:
        spec: `topk(0.01)`, `sidco-e(0.001, stages=2)`, `ef(topk(0.01) | qsgd(bits=4))`,
            `pkg.module:Class(0.01)`.

    Raises:
        ValueError: not in the grammar, unknown name, or settings out of range.

    Example:
        >>> print(compressor("ef( topk(ratio=0.01) )"))
        ef(topk(0.01))
    """
    if not isinstance(spec, str):
        return spec
    return compressors(spec, ())[0]


def compressors(spec: str, ratios: Iterable[float]) -> list[Compressor]:
    """The compressors a spec stands for: one a ratio where it leaves the ratio open.

    Example:
        >>> [str(each) for each in compressors("ef(topk)", [0.1, 0.01])]
        ['ef(topk(0.1))', 'ef(topk(0.01))']
    """
    return build(spec, {**COMPRESSORS, **MEMORIES, **POLICIES, **STAGES}, ratios)
