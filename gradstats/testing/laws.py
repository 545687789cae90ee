"""What a law is: facts about a compressor on a gradient, and the gradients it is held on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gradstats.compressors import Compressor, Payload, Rng
from gradstats.testing.comparing import Evidence
from gradstats.testing.gradients import Gradients

Facts = Iterator[tuple[str, object]]  # a fact, and whether it holds: a truth value or Evidence
Check = Callable[[], None]


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
    """The facts that do not hold, with their values; a call that fails ends them."""
    for fact, holds in attempted(facts):
        if not holds:
            values = holds.values if isinstance(holds, Evidence) else ""
            yield f"{fact}, {values}" if values else fact


def attempted(facts: Facts) -> Facts:
    """The facts; a call that fails ends them with a fact that does not hold."""
    try:
        yield from facts
    except Exception as error:  # whatever a class under test may raise
        yield f"no call fails, got {error!r} {_place(error)}", False


def _place(error: Exception) -> str:
    """The function and the line that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames)[-1]
    return f"in {last.name} ({Path(last.filename).name}:{last.lineno})"


def run_all(checks: Iterable[tuple[str, Check]]) -> None:
    """Run every check.

    Args:
        checks: (name, check) of each law.

    Raises:
        AssertionError: The laws that are broken, one per line.
    """
    messages = [message for _, check in checks if (message := _failure(check))]
    if messages:
        raise AssertionError("\n".join(messages))


def _failure(check: Check) -> str:
    try:
        check()
    except AssertionError as error:
        return str(error)
    return ""


def encode(compressor: Compressor, grad: Tensor, rng: Rng) -> Payload:
    """One step from a fresh state."""
    return compressor.encode(grad, compressor.init(grad), rng)[0]
