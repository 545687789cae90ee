"""The compressor of a hook, with the memories of its parameters."""

from __future__ import annotations

import math

from torch import Tensor

from gradstats.compressors import Compressor, Rng, Step
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.rounds import Exchange, fused, several
from gradstats.exchange.buckets import Unit
from gradstats.exchange.layouts import Layout
from gradstats.exchange.parameter_states import Memories

DENSE = NoCompression()


class Compressing:
    """Compresses the units of buckets.

    Args:
        compressor: What compresses them.
        memories: Its states.
        seed: Of random methods.
        start_step: In the steps before this one all units are sent dense.
    """

    def __init__(
        self, compressor: Compressor, memories: Memories, seed: int, start_step: int
    ) -> None:
        self._compressor, self._memories = compressor, memories
        self._seed, self._start_step = seed, start_step
        self._sent = self._asked = 0

    @property
    def shows_nonfinite(self) -> bool:
        """See `Compressor.shows_nonfinite`."""
        return self._compressor.shows_nonfinite

    def exchange_of(
        self, layout: Layout, step: int, worker: int, workers: int
    ) -> Exchange[list[list[Step]]]:
        """The steps of the units that are compressed, which come first, and of the dense ones."""
        compressed, dense = [], []
        for unit in layout.units:
            remembers, state = self._remembers(unit, step), None
            if remembers:
                state = self._memories.take(unit.keys, unit.grads, unit.whole)
            if self._is_dense(unit, step):
                method = self._compressor if remembers else DENSE
                dense.append(method.dense(unit.whole, state))
            else:
                rng = Rng(self._seed, step, ",".join(map(str, unit.keys)), worker, workers)
                compressed.append((unit.whole, state, rng))
        parts = [several(dense)]
        if compressed:
            grads, states, rngs = zip(*compressed, strict=True)
            parts.insert(0, self._compressor.exchange_all(grads, states, rngs))
        return fused(parts)

    def keep(self, layout: Layout, steps: list[Step], step: int) -> None:
        """Keep the states of a bucket's steps, and count what was sent."""
        for unit, each in zip(layout.units, steps, strict=True):
            if self._compressor.ratio_asked is not None and not self._is_dense(unit, step):
                self._sent += each.sent.count
                self._asked += self._compressor.target_count(each.sent.numel)
            if self._remembers(unit, step):
                self._memories.put(unit.keys, each.state)

    def uncompress(self, layout: Layout, scale: float) -> None:
        """Put what the optimizer would get uncompressed into a bucket; memories stay."""
        for unit in layout.units if self._compressor.steers else ():
            unit.read(scale)
            state = self._memories.take(unit.keys, unit.grads, unit.whole)
            update: Tensor = self._compressor.uncompressed(unit.whole, state)
            unit.write(update * scale)

    def khat_over_k(self) -> float:
        """Elements sent over the target number since the last call; NaN without a target."""
        sent, asked, self._sent, self._asked = self._sent, self._asked, 0, 0
        return sent / asked if asked else math.nan

    def _remembers(self, unit: Unit, step: int) -> bool:
        dense = self._is_dense(unit, step)
        return not dense or self._compressor.steers or unit.keys in self._memories

    def _is_dense(self, unit: Unit, step: int) -> bool:
        return unit.dense or step < self._start_step
