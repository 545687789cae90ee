"""Buckets that are only averaged: they are summed while the backward pass goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.futures import Future

from gradstats.compressors import AllReduce
from gradstats.exchange.averaging import Averaging
from gradstats.exchange.collectives import Group
from gradstats.exchange.comparing import BROKEN, Report, Situation, are_broken, compare, reports_of
from gradstats.exchange.layouts import Layout


class Flight:
    """A bucket whose mean is under way.

    Args:
        group: Carries it.
        at: The bucket, for errors.
        layout: What lies in it; None where this worker failed before it knew.
        averaging: What is summed; None likewise.
        future: Gets the bucket with its mean.

    Attributes:
        broken: Whether a worker has a NaN or inf in it, once the numbers were read.
    """

    def __init__(
        self,
        group: Group,
        at: Situation,
        layout: Layout | None,
        averaging: Averaging | None,
        future: Future[Tensor],
    ) -> None:
        self.at, self.layout, self.broken = at, layout, False
        self._group, self._averaging, self._future = group, averaging, future
        self._numbers: Callable[[], list[list[int]]] | None = None
        self._sums: Sequence[Callable[[], None]] = ()

    def begin(self, report: Report, finite: Tensor | None) -> None:
        """Send the numbers, and the sum where all workers had this bucket before.

        Args:
            report: Of this worker.
            finite: Whether its gradients are finite, a bool `[]` on their device.
        """
        own = torch.tensor(report.numbers, dtype=torch.int64, device=self._group.device)
        if finite is not None:
            own[1] += BROKEN * finite.logical_not()
        self._numbers = self._group.start_sharing(own)
        if self.layout and self.layout.agreed:
            self._sum()

    def read_numbers(self) -> None:
        """Compare the numbers of all workers, if that was not done yet.

        Raises:
            DisagreementError: Another worker failed, or something differs.
        """
        numbers, self._numbers = self._numbers, None
        if numbers is None or self.layout is None:
            return
        reports = reports_of(numbers())
        compare(reports, self.at)
        self.broken = are_broken(reports)
        if not self.layout.agreed:
            self.layout.agreed = True
            self._sum()

    def land(self) -> None:
        """Wait for the sum, and put the mean into the bucket, if that was not done yet."""
        if self._future.done():
            return
        self.read_numbers()
        self.wait()
        assert self.layout
        assert self._averaging
        start, buffer = time.perf_counter(), self.layout.buffer
        if self.broken and not self._averaging.exact:
            buffer.copy_(self._group.perform(AllReduce(buffer, "mean")))
        else:
            self._averaging.finish()
            self._group.seconds.decode += time.perf_counter() - start
        self._future.set_result(buffer)

    def wait(self) -> None:
        """Wait until nothing of it is under way."""
        if self._numbers:
            self._numbers()
        for summed in self._sums:
            summed()
        self._numbers, self._sums = None, ()

    def _sum(self) -> None:
        assert self._averaging
        self._sums = self._averaging.start(self._group)


class Flights:
    """The flights of a backward pass, in the order in which all workers began them."""

    def __init__(self) -> None:
        self._flights: list[Flight] = []

    def add(self, flight: Flight) -> None:
        """Add one whose numbers may be under way."""
        self._flights.append(flight)

    def read_numbers(self) -> None:
        """Compare what the workers said of the last one."""
        if self._flights:
            self._flights[-1].read_numbers()

    def land(self) -> list[Flight]:
        """End all of them; returns them."""
        self.read_numbers()
        landed, self._flights = self._flights, []
        for flight in landed:
            flight.land()
        return landed

    def forget(self) -> None:
        """Leave those of a pass that has failed to themselves."""
        self._flights = []
