"""The two short forms of a compressor for authors: `Stateless` and `Joint`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from typing import Any

from torch import Tensor

from gradstats.compressors.base import Compressor
from gradstats.compressors.checks import check_sent, write_count
from gradstats.compressors.rounds import Collective, State, Step, alone
from gradstats.payloads.base import Payload
from gradstats.rng import Rng


class Stateless(Compressor):
    """A compressor that keeps nothing from step to step: its author writes `message`."""

    @abstractmethod
    def message(self, flat: Tensor, rng: Rng | None = None) -> Payload:
        """Encode one gradient.

        Args:
            flat: the gradient, `[d]`, contiguous and detached. Read only, and it may share memory
                with the parameter's gradient: copy what goes into the payload.
            rng: random numbers; needed if the contract says `random=True`.
        """

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Encode the flat gradient by `message`.

        Raises:
            TypeError: `grad` is no dense tensor of floating-point numbers, or `message` returned
                no payload.
            ValueError: the payload has another number of elements, or `message` wrote to `grad`.
        """
        flat, writes = self.flattened(grad), write_count(grad)
        payload = self.message(flat, rng)
        check_sent(payload, grad, self.name)
        if write_count(grad) != writes:
            raise ValueError(f"{self.name} must not write to the gradient: clone it before")
        return payload, state


class Joint(Compressor):
    """A compressor whose message depends on all workers: its author writes `exchange`."""

    @abstractmethod
    def exchange(
        self, grad: Tensor, state: State, rng: Rng | None = None
    ) -> Generator[Collective, Any, Step]:
        """See `Compressor.exchange`."""

    def encode(self, grad: Tensor, state: State, rng: Rng | None = None) -> tuple[Payload, State]:
        """Return what a single worker sends: its `exchange` with no other worker."""
        step = alone(self.exchange(grad, state, rng))
        return step.sent, step.state


def needs_rng(compressor: Compressor, rng: Rng | None) -> Rng:
    """Return the rng.

    Raises:
        ValueError: the rng is None, but the compressor draws random numbers.
    """
    if rng is None:
        raise ValueError(
            f"rng must be given to {compressor}, which draws random numbers, got None"
        )
    return rng
