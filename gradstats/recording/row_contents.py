"""What the writer computes of a staged row before it commits it."""

import math
import threading
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstats.recording.slots import (
    CLIP_LIMIT,
    CLIP_NORM,
    LEARNING_RATE,
    LOSS,
    LOSS_SCALE,
    SKIPPED,
    Slot,
)
from gradstats.store import Parameter
from gradstats.store.rows import as_bits
from gradstats.summary import Summary, summarize, summarize_segments

#: Elements of one call, after which the interpreter may have to wait, and of one dot product.
_BLOCK, _DOT = 2**18, 2**13
#: The float64 of one block, for each thread that writes: new memory is slow at its first use.
_memory = threading.local()


def coordinates(slot: Slot, segment: int) -> dict[str, Any]:
    """The coordinates of a row: what was seen around its step, and what its numbers give."""
    scalars = slot.scalars.tolist()
    norm, limit = scalars[CLIP_NORM], scalars[CLIP_LIMIT]
    seconds = [later - sooner for sooner, later in pairwise(slot.times)]
    return {
        **slot.facts,
        "step_seconds": median(seconds) if seconds else None,
        "segment": segment,
        "point": slot.source.point,
        "loss": scalars[LOSS],
        "learning_rate": scalars[LEARNING_RATE],
        "loss_scale": scalars[LOSS_SCALE],
        "skipped": int(scalars[SKIPPED] > 0),
        "clip_norm": norm,
        "clip_coefficient": limit / (norm + 1e-6) if norm + 1e-6 > limit else norm * 0 + 1,
    }


def summaries(slot: Slot, table: Sequence[Parameter]) -> dict[str, Summary]:
    """The Summaries by name, of the parameters that have a gradient, in table order."""
    by_index: dict[int, Summary] = {}
    for dtype, flat in slot.flat.items():
        dense = [i for i, p in enumerate(table) if p.dtype == dtype and p.layout == "dense"]
        offsets = [0, *(table[i].offset + table[i].numel for i in dense)]
        by_index |= zip(dense, summarize_segments(flat, offsets), strict=True)
    for index, (indices, values) in slot.sparse.items():
        shape = table[index].shape
        by_index[index] = summarize(
            torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
        )
    return {p.name: by_index[i] for i, p in enumerate(table) if slot.present[i]}


def coalesced(slot: Slot, index: int) -> tuple[Tensor, Tensor]:
    """Indices and values of a sparse gradient, with the values of equal indices added up."""
    indices, values = slot.sparse[index]
    shape = slot.source.table[index].shape
    sparse = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
    return sparse.indices(), sparse.values()


def ragged(slot: Slot) -> dict[str, np.ndarray]:
    """Sparse gradients as the store keeps them: leading indices flattened, values too."""
    ragged: dict[str, np.ndarray] = {}
    for index, (indices, values) in slot.sparse.items():
        shape = slot.source.table[index].shape
        strides = np.cumprod([1, *shape[indices.shape[0] - 1 : 0 : -1]])[::-1]
        ragged[f"indices_{index}"] = strides @ indices.numpy()
        ragged[f"values_{index}"] = as_bits(values.reshape(-1))
    return ragged


def norm(slot: Slot) -> float:
    """The Euclidean norm of a row: not finite if and only if an element is not.

    Where squares of float64 elements overflow, elements are first divided by a power of two.

    In numpy, because a torch operation of this thread would start a second team of OpenMP threads
    beside the training's.
    """
    vectors = [*slot.flat.values(), *(values.reshape(-1) for _, values in slot.sparse.values())]
    blocks = [
        flat[start : start + _BLOCK] for flat in vectors for start in range(0, len(flat), _BLOCK)
    ]
    wide = _wide()
    with np.errstate(all="ignore"):
        square = sum(_square(_as_numpy(block), wide) for block in blocks)
        if 1e-280 < square < math.inf or all(block.dtype != torch.float64 for block in blocks):
            return math.sqrt(square)
        arrays = [_as_numpy(block) for block in blocks]
        largest = max(float(np.abs(array).max(initial=0.0)) for array in arrays)
        unit = math.ldexp(1.0, min(max(math.frexp(largest)[1], -1000), 1000))
        square = sum(_square(array / unit, wide) for array in arrays)
        return math.sqrt(square) * unit


def _wide() -> np.ndarray:
    if not hasattr(_memory, "wide"):
        _memory.wide = np.empty((_BLOCK // _DOT, _DOT))
    wide: np.ndarray = _memory.wide
    return wide


def _square(block: np.ndarray, wide: np.ndarray) -> float:
    """The sum of squares in float64, in few calls, since the interpreter waits between them.

    Args:
        block: elements.
        wide: memory of as many float64, in rows that numpy multiplies in this thread alone.
    """
    whole = wide[: -(-block.size // _DOT)]
    flat = whole.reshape(-1)
    flat[: block.size], flat[block.size :] = block, 0.0
    return float(np.matmul(whole[:, None, :], whole[:, :, None]).sum())


def _as_numpy(block: Tensor) -> np.ndarray:
    if block.dtype != torch.bfloat16:
        return block.numpy()
    # numpy has no bfloat16; its bits are the upper half of a float32's
    bits = block.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32)
