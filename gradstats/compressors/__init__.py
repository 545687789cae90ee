"""Gradient compressors by name, and everything that the author of one imports.

To add a method: write its file in `methods/`, and add a line to `REFERENCE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_choice, check_whole
from gradstats.compressors.contracts import (
    DENSE_BITS,
    KEPT_SHARE,
    SPARSE_BITS,
    SPARSIFIER,
    Bound,
    Contract,
)
from gradstats.compressors.grammar import Factory, build, find
from gradstats.compressors.methods.acp_sgd import ACPSGD
from gradstats.compressors.methods.adacomp import AdaComp
from gradstats.compressors.methods.affine import Affine
from gradstats.compressors.methods.atomo import ATOMO
from gradstats.compressors.methods.bf16 import BF16, FP16
from gradstats.compressors.methods.chunk_topk import ChunkTopK
from gradstats.compressors.methods.clt_k import CLTK
from gradstats.compressors.methods.co3 import CO3
from gradstats.compressors.methods.count_sketch import CountSketch
from gradstats.compressors.methods.dgc import DGC
from gradstats.compressors.methods.dynamic_tree import DynamicTree
from gradstats.compressors.methods.eden import EDEN
from gradstats.compressors.methods.exact_threshold import ExactThreshold
from gradstats.compressors.methods.fp8 import FP8
from gradstats.compressors.methods.gaussiank import GaussianK
from gradstats.compressors.methods.hard_threshold import HardThreshold
from gradstats.compressors.methods.intsgd import IntSGD
from gradstats.compressors.methods.lloyd_max import LloydMax
from gradstats.compressors.methods.lossless import Lossless
from gradstats.compressors.methods.mstopk import MSTopK
from gradstats.compressors.methods.mx import MX
from gradstats.compressors.methods.natural import NUQSGD, Natural
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.methods.nvfp4 import NVFP4
from gradstats.compressors.methods.onebit import BinGrad, OneBit
from gradstats.compressors.methods.orq import ORQ
from gradstats.compressors.methods.powersgd import PowerSGD
from gradstats.compressors.methods.qsgd import QSGD
from gradstats.compressors.methods.qsparse import QSparse
from gradstats.compressors.methods.randomk import RandomK
from gradstats.compressors.methods.redsync import RedSync, TrimmedRedSync
from gradstats.compressors.methods.sbc import SBC, stc
from gradstats.compressors.methods.shared_scale import SharedQSGD, SharedTernGrad
from gradstats.compressors.methods.sidco import SIDCo
from gradstats.compressors.methods.sign import ScaledSign
from gradstats.compressors.methods.signum import Signum
from gradstats.compressors.methods.svd import SVD
from gradstats.compressors.methods.terngrad import TernGrad
from gradstats.compressors.methods.thc import THC
from gradstats.compressors.methods.threelc import ThreeLC
from gradstats.compressors.methods.topk import TopK
from gradstats.compressors.methods.wangni import Wangni
from gradstats.compressors.quantizing import (
    bucket_of,
    check_bucket,
    coded_bits,
    in_buckets,
    own_levels,
    quantized,
    within_float32,
)
from gradstats.compressors.rounds import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Collective,
    ReduceScatter,
    State,
    Step,
)
from gradstats.compressors.short_forms import Joint, Stateless, needs_rng
from gradstats.compressors.states import Mean, first_state, own_share
from gradstats.compressors.wrappers.adaquant import AdaQuant
from gradstats.compressors.wrappers.ef21 import EF21
from gradstats.compressors.wrappers.error_feedback import ErrorFeedback
from gradstats.compressors.wrappers.low_pass import LowPass
from gradstats.compressors.wrappers.memory import Memory
from gradstats.compressors.wrappers.per_parameter import PerParameter
from gradstats.compressors.wrappers.pipe import Pipe, Stage
from gradstats.compressors.wrappers.recoding import EntropyCode, IndexCode
from gradstats.compressors.wrappers.ring import Ring
from gradstats.compressors.wrappers.two_shot import TwoShot
from gradstats.compressors.wrappers.velocity import Velocity
from gradstats.compressors.wrappers.warmup import WarmUp
from gradstats.payloads import from_bytes
from gradstats.payloads.base import Payload
from gradstats.payloads.index_codes import CODES
from gradstats.payloads.wire import PayloadError
from gradstats.ratios import MIN_NUMEL, DenseRule, Part, check_ratio, kept_count
from gradstats.rng import Rng

__all__ = [
    "COLLECTIVES",
    "COMPRESSORS",
    "DENSE_BITS",
    "DEPLOYED",
    "KEPT_SHARE",
    "MEMORIES",
    "MIN_NUMEL",
    "POLICIES",
    "REFERENCE",
    "SPARSE_BITS",
    "SPARSIFIER",
    "STAGES",
    "SUPPORTED",
    "AllGather",
    "AllReduce",
    "AllToAll",
    "Bound",
    "Broadcast",
    "Collective",
    "Compressor",
    "Contract",
    "DenseRule",
    "ErrorFeedback",
    "ExactThreshold",
    "Joint",
    "Mean",
    "Memory",
    "Part",
    "Payload",
    "PayloadError",
    "PerParameter",
    "Pipe",
    "ReduceScatter",
    "Rng",
    "Stage",
    "State",
    "Stateless",
    "Step",
    "bucket_of",
    "check_bucket",
    "check_choice",
    "check_ratio",
    "check_whole",
    "coded_bits",
    "compressor",
    "compressors",
    "factory",
    "first_state",
    "from_bytes",
    "in_buckets",
    "kept_count",
    "needs_rng",
    "own_levels",
    "own_share",
    "quantized",
    "within_float32",
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
DEPLOYED = ("twoshot(mxfp8)", "twoshot(nvfp4)")  # exchanges that a replay runs by default
COLLECTIVES: dict[str, Callable[..., Compressor]] = {"twoshot": TwoShot, "ring": Ring}
GRANULARITIES: dict[str, Callable[..., Compressor]] = {"per-parameter": PerParameter}
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
        TypeError: neither a text nor an instance.
        ValueError: not in the grammar, unknown name, or settings out of range.

    Example:
        >>> print(compressor("ef( topk(ratio=0.01) )"))
        ef(topk(0.01))
    """
    if isinstance(spec, str):
        return compressors(spec, ())[0]
    given: object = spec
    if not isinstance(given, Compressor):
        rule = "compressor must be a spec such as topk(0.01), or an instance"
        raise TypeError(f"{rule}, got {given!r}")
    return given


def compressors(spec: str, ratios: Iterable[float]) -> list[Compressor]:
    """Make the compressors that a spec stands for: one per ratio if it leaves the ratio open.

    Example:
        >>> [str(each) for each in compressors("ef(topk)", [0.1, 0.01])]
        ['ef(topk(0.1))', 'ef(topk(0.01))']
    """
    return build(spec, _known(), ratios)


def factory(name: str) -> Factory:
    """Look up the class or function that makes a compressor, memory, policy or stage.

    Args:
        name: Its name in the grammar, such as "topk", or `pkg.module:Class` of your own.

    Raises:
        ValueError: There is none of that name; the error names the nearest one.

    Example:
        >>> factory("topk").__name__
        'TopK'
    """
    return find(name, _known(), name)


def _known() -> dict[str, Factory]:
    return {**COMPRESSORS, **MEMORIES, **COLLECTIVES, **POLICIES, **GRANULARITIES, **STAGES}
