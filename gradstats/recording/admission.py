"""What a recording is to do, and which rows it takes for that."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradstats.recording.budget import Budget
from gradstats.recording.messages import Reports
from gradstats.recording.schedules import Schedule
from gradstats.recording.staging import Source

CountBackwards = Callable[[Callable[[], None]], Iterable[Any]]


@dataclass(frozen=True)
class Plan:
    """What a recording is to do.

    Attributes:
        schedule: Which steps get a full row.
        start_step: Number of the first optimizer step.
        budget: The bytes it may write.
        thin: Halve the rate of full rows whenever one finds no free slot.
        world_size: Processes that train together.
        by_comm_hook: A communication hook puts local gradients, instead of parameters' hooks.
        count_backwards: Calls what it is given at every backward pass and returns handles to
            remove, where parameters' hooks do not run (FSDP).
        names: Indices of parameters by the names that pseudo-gradients go by; None for those that
            are not recorded.
    """

    schedule: Schedule
    start_step: int
    budget: Budget
    thin: bool = False
    world_size: int = 1
    by_comm_hook: bool = False
    count_backwards: CountBackwards | None = None
    names: Mapping[str, int | None] = field(default_factory=dict)


class Admission:
    """Decides which rows are due, and whether bytes and slots are left for them.

    Args:
        plan: What the recording is to do.
        reports: Prints what went wrong.

    Attributes:
        dropped: Rows that were due and not staged.
        thinned: Full rows that the budget left out.
    """

    def __init__(self, plan: Plan, reports: Reports) -> None:
        self.dropped = self.thinned = 0
        self._plan = plan
        self._reports = reports
        self._asked = (-1, False)  # the last step the schedule was asked about, and its answer

    def due(self, step: int, sources: Sequence[Source]) -> list[Source]:
        """Those of the sources whose row is due; the schedule is asked once per step."""
        due = [source for source in sources if source.kind != "full"]
        whole = [source for source in sources if source.kind == "full"]
        if whole and self._full_row_is_due(step):
            due = [*whole, *due]
        return due

    def _full_row_is_due(self, step: int) -> bool:
        if self._asked[0] != step:
            self._asked = (step, self._plan.schedule(step) and self._kept(step))
        return self._asked[1]

    def _kept(self, step: int) -> bool:
        if self._plan.budget.keeps_full_row():
            return True
        self.thinned += 1
        text = f"half of max_bytes is used at step {step}: full rows come half as often"
        self._reports.once("thinning", f"{text}, and again at each next half")
        return False

    def affordable(self, source: Source, step: int) -> bool:
        """Whether the budget has the bytes of a row; else the row is dropped."""
        if source.cost <= self._plan.budget.remaining:
            return True
        text = f"max_bytes is used up at step {step}: {source.kind} rows are dropped from here on"
        self.drop(f"budget {source.kind}", text)
        return False

    def no_slot(self, source: Source, step: int) -> None:
        """Drop a row for which no slot is free."""
        text = f"the writer is behind at step {step}: such {source.kind} rows are dropped"
        self.drop(f"full {source.kind}", text)
        if self._plan.thin and source.kind == "full":
            self._plan.budget.thin()

    def drop(self, subject: str, text: str) -> None:
        """Count a dropped row; print why, the first time only."""
        self.dropped += 1
        self._reports.once(subject, text)
