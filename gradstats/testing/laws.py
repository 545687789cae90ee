"""What a law is: facts about a compressor on a gradient, and the gradients it is held on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors import Compressor, Payload, Rng
from gradstats.testing.gradients import Gradients

Facts = Iterator[tuple[str, bool]]
CALLS_THAT_FAIL = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


def _always(compressor: Compressor) -> bool:
    return True


@dataclass(frozen=True)
class Law:
    """A law that compressors obey.

    Attributes:
        name: The id of its check.
        facts: Facts about a compressor on one gradient, each with whether it holds.
        gradients: The gradients by name.
        binds: Whether a compressor must obey; its contract may promise less.
    """

    name: str
    facts: Callable[[Compressor, Tensor, Rng], Facts]
    gradients: Callable[[], Gradients]
    binds: Callable[[Compressor], bool] = _always

    def broken(self, compressor: Compressor, rng: Rng) -> Iterator[str]:
        """The facts that do not hold, each with its gradient."""
        for name, grad in self.gradients().items():
            for fact in broken(self.facts(compressor, grad.clone(), rng)):
                yield f"on the gradient {name!r}: {fact}"

    def hold(self, compressor: Compressor, rng: Rng) -> None:
        """Raise AssertionError unless the compressor obeys on every gradient."""
        cases = list(self.broken(compressor, rng))
        if cases:
            more = f"; and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
            facts = "; ".join(cases[:SHOWN])
            raise AssertionError(f"{compressor} must obey the law {self.name}, {facts}{more}")


SHOWN = 5  # broken facts in one message


def broken(facts: Facts) -> Iterator[str]:
    """The facts that do not hold; a call that fails ends them."""
    try:
        for fact, holds in facts:
            if not holds:
                yield fact
    except CALLS_THAT_FAIL as error:
        yield f"no call fails, got {error!r}"


def encode(compressor: Compressor, grad: Tensor, rng: Rng) -> Payload:
    """One step from a fresh state."""
    return compressor.encode(grad, compressor.init(grad), rng)[0]
