"""A bucket that is exchanged: from its gradients to the steps of the compressor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors import AllReduce, Collective, Step
from gradstats.exchange.collectives import Group
from gradstats.exchange.comparing import FAILED, Report, reports_of
from gradstats.exchange.compressing import Compressing
from gradstats.exchange.driving import Rounds
from gradstats.exchange.layouts import Layout
from gradstats.exchange.messaging import Header, MessageError, describe


@dataclass(eq=False)
class BucketExchange:
    """The exchange of a bucket on one worker.

    Attributes:
        group: Carries it.
        compressing: Compresses it.
        last: Whether the bucket is the last one of its backward pass.
        scale: The loss scale.
        layout: What lies in the bucket; None where this worker failed before it knew.
        broken: Whether a NaN or inf is in it.
        rounds: The collectives; None where it is broken.
    """

    group: Group
    compressing: Compressing
    last: bool
    scale: float = 1.0
    layout: Layout | None = None
    broken: bool = False
    rounds: Rounds[list[list[Step]]] | None = None

    def open(self, layout: Layout, step: int) -> None:
        """Run it up to its first collective, unless a gradient is broken."""
        self.layout, group = layout, self.group
        shown = self.compressing.shows_nonfinite and layout.is_read_in_place
        self.broken = not shown and not layout.read(self.scale)
        if not self.broken:
            exchange = self.compressing.exchange_of(layout, step, group.rank, group.workers)
            self.rounds = Rounds(exchange, group)
            group.header(self.request)  # which encodes indices, and may fail too
            self.broken = shown and not self.rounds.asks_finite

    @property
    def request(self) -> Collective | None:
        """The collective that comes next."""
        return self.rounds.request if self.rounds else None

    @property
    def asked(self) -> str:
        """That collective, for the comparison with the other workers."""
        return describe(self.request) if self.request else "nothing"

    def finish(self, headers: Sequence[Header]) -> tuple[list[Step], bool]:
        """Perform the collectives, and write the result; returns also whether it is finite.

        Raises:
            CollectiveError: a message is damaged, which is read in the same copy from the device.
                The others learn it in the round before the next bucket, if there is one.
        """
        assert self.rounds
        assert self.layout
        ended = False
        try:
            steps = [step for part in self.rounds.finish(headers) for step in part]
            start = time.perf_counter()
            finite = self.rounds.decoding(self.layout.write, steps, self.scale)
            self.group.seconds.decode += time.perf_counter() - start
            ended = True
            (sound,) = self.group.check(finite)
        except BaseException as error:
            self.group.forget()
            if isinstance(error, MessageError) and ended and not self.last:
                share_flag(self.group, FAILED)
            raise
        return steps, sound

    def average(self, buffer: Tensor) -> Tensor:
        """Average the bucket without compression instead; memories stay as they are."""
        assert self.layout
        self.compressing.uncompress(self.layout, self.scale)
        return buffer.copy_(self.group.perform(AllReduce(buffer, "mean")))

    def call_off(self) -> None:
        """End it before its first collective."""
        if self.rounds:
            self.rounds.close()
        self.group.forget()


def share_flag(group: Group, flag: int) -> list[Report]:
    """The reports of all workers in a round in which one has only a flag to send."""
    return reports_of(group.share(*Report(flags=flag).numbers))
