"""Compressors beside a training: each gets the tracked elements of every step and keeps memories.

Nothing they make goes back into the training.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstats.compressors import compressor
from gradstats.replaying.folding import replay_rows
from gradstats.store import Row


def _gradient(track: Row) -> Iterator[Tensor]:
    """The vectors of a row without the loss scale that multiplies them.

    Raises:
        ValueError: The scale was not seen: a memory must not mix scales.
    """
    scale = track.coordinates["loss_scale"] if track.coordinates["unscaled"] == 0 else 1.0
    if math.isnan(scale):
        raise ValueError(f"cannot run shadows on step {track.step}: its loss scale is not known")
    for part in track.flat.values():
        wide = part if part.dtype == torch.float64 else part.float()
        yield part if scale == 1 else wide / scale


class Shadow:
    """Folds compressors over the tracked rows of one point as they come.

    Args:
        specs: Compressors in the grammar of `gradstats.compressor`, such as `"ef(topk(0.01))"`.
        seed: Of the random methods.

    Raises:
        ValueError: A spec that names no compressor.
    """

    def __init__(self, specs: Sequence[str], seed: int) -> None:
        self._compressors = [compressor(spec) for spec in specs]
        self._now: tuple[int, Tensor] = (0, torch.zeros(0))
        self._rows = replay_rows(self._grads(), self._compressors, seed=seed)

    def row(self, track: Row) -> Row:
        """What each compressor did with a tracked row: the row of kind "shadow" beside it."""
        wide = torch.promote_types
        parts = list(_gradient(track))
        dtype = parts[0].dtype
        for part in parts[1:]:
            dtype = wide(dtype, part.dtype)
        self._now = track.step, torch.cat([part.to(dtype) for part in parts])
        results = [self._named(next(self._rows)) for _ in self._compressors]
        data = np.frombuffer(json.dumps(results).encode(), np.uint8)
        return Row(track.step, {}, track.present, track.coordinates, ragged={"shadow": data})

    def _grads(self) -> Iterator[tuple[int, Tensor]]:
        while True:
            yield self._now

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"compressor": str(self._compressors[row["index"]]), **row}
