"""The counts of a recording: rows, bytes, drops and time."""

from dataclasses import dataclass

from gradstats.recording.budget import format_bytes
from gradstats.recording.writer import Writer


@dataclass(frozen=True)
class Stats:
    """What a recording has done by now.

    Attributes:
        full_rows: Whole gradients on disk.
        tracked_rows: Rows of tracked elements on disk.
        summary_rows: Rows of Summaries on disk.
        nbytes: Bytes of gradients and weights in them.
        dropped: Rows that were due and could not be stored.
        thinned: Full rows passed over because of `max_bytes`.
        nonfinite: Rows on disk that hold a NaN or an infinity.
        unsent: Rows on their way to an object store, or that did not arrive.
        unrecorded: Steps that other optimizers took over recorded parameters.
        seconds: Time the training thread spent on the recording.
        training_seconds: Time from the first to the last step looked at.
    """

    full_rows: int = 0
    tracked_rows: int = 0
    summary_rows: int = 0
    nbytes: int = 0
    dropped: int = 0
    thinned: int = 0
    nonfinite: int = 0
    unsent: int = 0
    unrecorded: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0

    def __str__(self) -> str:
        rows = f"{self.full_rows:,} full rows + {self.tracked_rows:,} tracked steps"
        if self.summary_rows:
            rows = f"{rows} + {self.summary_rows:,} steps of Summaries"
        share = self.seconds / self.training_seconds if self.training_seconds else 0.0
        thinned = f", {self.thinned:,} passed over for max_bytes" if self.thinned else ""
        odd = f", {self.nonfinite:,} with NaN or inf" if self.nonfinite else ""
        odd += f", {self.unsent:,} not sent" if self.unsent else ""
        others = f", {self.unrecorded:,} steps of other optimizers" if self.unrecorded else ""
        odd += f"{others} not recorded" if others else ""
        percent = f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"
        return (
            f"{rows}, {format_bytes(self.nbytes)}, {self.dropped:,} dropped{thinned}{odd}, "
            f"{percent} % of training time"
        )


@dataclass(frozen=True)
class Spent:
    """What a recording has done in the training's own thread.

    Attributes:
        dropped: Rows that were due and not staged.
        thinned: Full rows passed over because of `max_bytes`.
        unrecorded: Steps that other optimizers took over recorded parameters.
        seconds: Time the training thread spent on the recording.
        training_seconds: Time from the first to the last step looked at.
    """

    dropped: int = 0
    thinned: int = 0
    unrecorded: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0


def stats_of(writer: Writer, spent: Spent) -> Stats:
    """Put together what the writer and the training's thread have done."""
    return Stats(
        full_rows=writer.rows["full"],
        tracked_rows=writer.rows["track"],
        summary_rows=writer.rows["summary"],
        nbytes=writer.nbytes,
        dropped=spent.dropped + writer.dropped,
        thinned=spent.thinned,
        nonfinite=writer.nonfinite,
        unsent=writer.unsent,
        unrecorded=spent.unrecorded,
        seconds=spent.seconds,
        training_seconds=spent.training_seconds,
    )
