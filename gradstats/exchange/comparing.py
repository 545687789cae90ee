"""What the workers of a hook tell each other about a bucket, and the errors where it differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from torch import Tensor

from gradstats.exchange.buckets import digest_of
from gradstats.exchange.driving import DisagreementError
from gradstats.exchange.messaging import Header, digest

BROKEN, FAILED, SPOILT = 1, 2, 4  # flags that workers send each other


@dataclass(frozen=True)
class Report:
    """Seven numbers of one worker.

    Attributes:
        layout: Digest of the bucket's parameters, and of the step.
        flags: What went wrong.
        written: Digest of what was written to earlier buckets; 0 where none was taken.
        asked: Digest of the first collective.
        header: Of the messages in it.
    """

    layout: int = 0
    flags: int = 0
    written: int = 0
    asked: int = 0
    header: Header = Header()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that travel."""
        return (self.layout, self.flags, self.written, self.asked, *astuple(self.header))


def reports_of(shared: Sequence[Sequence[int]]) -> list[Report]:
    """The reports of all workers, from their numbers."""
    return [
        Report(layout, flags, written, asked, Header(*header))
        for layout, flags, written, asked, *header in shared
    ]


@dataclass(frozen=True)
class Situation:
    """Where this worker is, for errors.

    Attributes:
        worker: This worker.
        step: Number of the step.
        where: The bucket and the step.
        written: What was written to earlier buckets.
        asked: The first collective.
    """

    worker: int
    step: int
    where: str
    written: str = ""
    asked: str = "nothing"


def compare(reports: Sequence[Report], at: Situation) -> None:
    """Compare what must be alike on all workers.

    Raises:
        DisagreementError: Another worker failed, or something differs.
    """
    check_flags(reports, at.where)
    own = reports[at.worker]
    others = [worker for worker, each in enumerate(reports) if each.layout != own.layout]
    if others:
        fact = f"at step {at.step} of worker {at.worker} it differs on {others}"
        raise DisagreementError(f"a bucket must be alike on all workers: {fact}")
    others = [worker for worker, each in enumerate(reports) if each.written != own.written]
    if others:
        fact = f"worker {at.worker} and workers {others} have drifted apart"
        raise DisagreementError(f"{at.written} must be the same on all workers: {fact}")
    others = [worker for worker, each in enumerate(reports) if each.asked != own.asked]
    if others and not are_broken(reports):
        fact = f"worker {at.worker} asks for {at.asked} at {at.where}, not so {others}"
        raise DisagreementError(f"workers must ask for the same collective: {fact}")


def check_flags(reports: Sequence[Report], where: str) -> None:
    """Raise DisagreementError where a worker failed, or alone has a NaN or inf in its result."""
    failed = [worker for worker, each in enumerate(reports) if each.flags & FAILED]
    if failed:
        fact = "its own error says why, this one is that of a worker that waited for it"
        raise DisagreementError(f"worker {failed[0]} failed before {where}: {fact}")
    spoilt = [worker for worker, each in enumerate(reports) if each.flags & SPOILT]
    if spoilt and len(spoilt) < len(reports):
        fact = f"a NaN or inf came out of the exchange on workers {spoilt} alone"
        raise DisagreementError(f"workers have drifted apart by {where}: {fact}")


def are_broken(reports: Sequence[Report]) -> bool:
    """Whether a worker has a NaN or inf in its gradients."""
    return any(each.flags & BROKEN for each in reports)


class Written:
    """What a worker wrote to buckets whose digests were taken, until the workers compare them."""

    def __init__(self) -> None:
        self._places: list[str] = []
        self._digests: list[int] = []

    def add(self, place: str, result: Tensor) -> None:
        """Take the digest of what was written."""
        self._places.append(place)
        self._digests.append(digest_of(result))

    @property
    def text(self) -> str:
        """Where it was written."""
        return " or ".join(self._places)

    @property
    def digest(self) -> int:
        """One digest; 0 if none was taken."""
        return self._digests[0] if len(self._digests) == 1 else self._of_several()

    def _of_several(self) -> int:
        return digest(str(self._digests)) if self._digests else 0
