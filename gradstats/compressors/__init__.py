"""Gradient compressors, one a file. To add one: write its file, add a line to `COMPRESSORS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gradstats.compressors.base import (
    AllGather,
    AllReduce,
    Broadcast,
    Collective,
    Compressor,
    Contract,
    Step,
)
from gradstats.compressors.bf16 import BF16
from gradstats.compressors.decoding import from_bytes
from gradstats.compressors.dgc import DGC
from gradstats.compressors.feedback import ErrorFeedback
from gradstats.compressors.gaussiank import GaussianK
from gradstats.compressors.grammar import build
from gradstats.compressors.granularity import MIN_NUMEL, Part, PerParameter
from gradstats.compressors.none import NoCompression
from gradstats.compressors.payloads import Payload, PayloadError
from gradstats.compressors.randomk import RandomK
from gradstats.compressors.redsync import RedSync
from gradstats.compressors.rng import Rng
from gradstats.compressors.sidco import SIDCo
from gradstats.compressors.threshold import HardThreshold
from gradstats.compressors.topk import TopK

__all__ = [
    "COMPRESSORS",
    "MEMORIES",
    "MIN_NUMEL",
    "AllGather",
    "AllReduce",
    "Broadcast",
    "Collective",
    "Compressor",
    "Contract",
    "ErrorFeedback",
    "Part",
    "Payload",
    "PayloadError",
    "PerParameter",
    "Rng",
    "Step",
    "compressor",
    "compressors",
    "from_bytes",
]

COMPRESSORS: dict[str, Callable[..., Compressor]] = {
    "none": NoCompression,
    "bf16": BF16,
    "topk": TopK,
    "randomk": RandomK,
    "threshold": HardThreshold,
    "dgc": DGC,
    "redsync": RedSync,
    "gaussiank": GaussianK,
    "sidco-e": partial(SIDCo, variant="e"),
    "sidco-gp": partial(SIDCo, variant="gp"),
    "sidco-p": partial(SIDCo, variant="p"),
}
MEMORIES: dict[str, Callable[..., Compressor]] = {"ef": ErrorFeedback}


def compressor(spec: str | Compressor) -> Compressor:
    """Make a compressor from the grammar; an instance is returned as it is.

    Args:
        spec: `topk(0.01)`, `sidco-e(0.001, stages=2)`, `ef(topk(0.01))`, `pkg.module:Class(0.01)`.

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
    return build(spec, COMPRESSORS | MEMORIES, ratios)
