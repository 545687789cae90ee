"""The rows of the step under way: which are due, and what is staged of them when."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from gradstats.recording.admission import Admission, Plan
from gradstats.recording.marks import Marks
from gradstats.recording.messages import LONG, Absence, Reports, shortened
from gradstats.recording.slots import POINTS, Slot
from gradstats.recording.staging import Source
from gradstats.recording.step_context import Circumstances
from gradstats.recording.writer import Writer


class Rows:
    """Stages the rows of a step and hands them to the writer when the next one begins.

    A row is made piece by piece during the step, or in one go before clipping, or at the step.

    Args:
        sources: Where rows come from.
        writer: Where they go.
        plan: Which rows are due, and how many bytes there are.
        reports: Prints what went wrong.
        seen: What was seen around the step.
        marks: The gradients as clipping left them.
        together: One optimizer gets all gradients at once; else all rows are made of pieces.

    Attributes:
        due: The next step of which there may be a row.
        open: Sources whose row is being made piece by piece.
        pending: Rows of the last step, to which a loss can be logged.
        taken: The rows before clipping of this step are staged.
        settled: What they hold is final, whatever happens to the gradients.
        waiting: Rows of pseudo-gradients that were given for this step.
        counted: Backward passes are counted elsewhere than by what local rows are put together of.
        table: The parameters as this process holds them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        writer: Writer,
        plan: Plan,
        reports: Reports,
        seen: Circumstances,
        marks: Marks,
        *,
        together: bool,
    ) -> None:
        self.named = [s for s in sources if s.point == "outer"]
        others = [s for s in sources if s.point != "outer"]
        self.pieces = [s for s in others if s.point == "local" or not together]
        self.before = [s for s in sources if s.point == "reduced" and together]
        self.at = [s for s in sources if s.point == "clipped" and together]
        self.due = plan.start_step
        self.open: list[Source] = []
        self.pending: list[Slot] = []
        self.counted = False
        self.taken = self.settled = False
        self.waiting: list[Slot] = []
        self._writer = writer
        self._plan = plan
        self._reports = reports
        self._seen = seen
        self._marks = marks
        self._admission = Admission(plan, reports)
        self._every_step = any(source.kind != "full" for source in sources)
        self.table = sources[0].table
        self._absence = Absence([p.name for p in self.table], [p.numel > 0 for p in self.table])
        self._together = together

    @property
    def dropped(self) -> int:
        """Rows that were due and not staged."""
        return self._admission.dropped

    @property
    def thinned(self) -> int:
        """Full rows that the budget left out."""
        return self._admission.thinned

    def drop(self, subject: str, text: str) -> None:
        """Count a row that is due and cannot be staged; print why, the first time only."""
        self._admission.drop(subject, f"{text}; such rows are dropped, training goes on")

    def look_ahead(self, step: int) -> None:
        """Set the next step of which there may be a row; begin its rows of pieces."""
        self.due = step if self._every_step else self._plan.schedule.upcoming(step)
        self.open = []
        if self.due == step and self.pieces:
            for source in self._admission.due(step, self.pieces):
                if self._admission.affordable(source, step) and self._begun(source, step):
                    self.open.append(source)

    def put(
        self,
        index: int,
        points: Collection[str],
        grad: Tensor | None = None,
        *,
        add: bool = False,
    ) -> None:
        """Copy a parameter's gradient, as it is now, into the rows that are made of pieces.

        A gradient that is given can also be added to what the row holds of the parameter.
        """
        for source in self.open:
            if source.point in points:
                source.put(index, grad, add=add)

    def take_before(self, step: int) -> None:
        """Stage the rows of the point before clipping; once they are, what has changed since.

        Another micro-batch may follow the clipping, or the batch may be left out: what is staged
        holds only as long as the gradients stay as clipping left them.
        """
        if self.settled:
            return
        if not self.taken:
            self.hand_over()
            self.taken = True
            for source in self._admission.due(step, self.before):
                self._stage(source, step)
            return
        changed = self._marks.changed(range(len(self.table)))
        self._marks.mark(changed)
        for slot in list(self.pending) if changed else ():
            before = slot.cost
            try:
                slot.source.patch(slot, sorted(changed))
                self._plan.budget.take(slot.cost - before)
            except Exception as error:
                self._void(slot)
                self.give_up(step, error)

    def settle(self, step: int) -> None:
        """What is staged before clipping is final: a scaler is about to divide the gradients."""
        if self.taken:
            self.take_before(step)
            self.settled = True

    def weigh(self, indices: Sequence[int]) -> None:
        """Copy values of parameters into the rows made of pieces that want them."""
        for source in self.open:
            if source.weights:
                source.weigh(indices)

    def take_named(self, step: int, grads: Mapping[int, Tensor]) -> None:
        """Stage the rows of pseudo-gradients, by the indices of their parameters."""
        self.hand_over()
        for source in self._admission.due(step, self.named):
            if not self._admission.affordable(source, step) or not self._begun(source, step):
                continue
            try:
                for index, grad in grads.items():
                    source.put(index, grad)
                slot = source.end()
            except Exception:
                source.abandon()
                raise
            self._plan.budget.take(slot.cost)
            self.waiting.append(slot)

    def complete_named(self, step: int, optimizer: Optimizer) -> None:
        """Complete the rows of pseudo-gradients alone, of a step without others."""
        self.hand_over()
        self._end_named(optimizer)
        self._watch(step)

    def _end_named(self, optimizer: Optimizer) -> None:
        for slot in self.waiting:
            self._seen.describe(slot, optimizer, early=False)
        self.pending += self.waiting
        self.waiting = []

    def complete(self, step: int, optimizer: Optimizer) -> None:
        """Complete the rows of a step, whose gradients the optimizer is about to get."""
        early = self.taken
        try:
            self.take_before(step)
            for source in self._admission.due(step, self.at):
                self._stage(source, step)
            self._end_pieces(step)
            for slot in self.pending:
                self._seen.describe(slot, optimizer, early=early)
            self._end_named(optimizer)
            self._watch(step)
        finally:
            self.taken = self.settled = False

    def undo(self) -> None:
        """Drop what is staged of the step under way, which did not take index."""
        self.abandon()
        for slot in list(self.pending) if self.taken else ():
            self._void(slot)
        for slot in self.waiting:
            self._return(slot)
        self.taken = self.settled = False
        self.waiting = []

    def _void(self, slot: Slot) -> None:
        self.pending.remove(slot)
        self._return(slot)

    def _return(self, slot: Slot) -> None:
        self._plan.budget.take(-slot.cost)
        slot.source.pool.give_back(slot)

    def restart(self, indices: Iterable[int]) -> None:
        """Forget gradients that were zeroed: they belong to a batch that makes no step."""
        for source in self.open:
            if any(source.fires):
                source.forget(indices)

    def hand_over(self) -> None:
        """Let the writer have the last step's rows: nothing can be logged to them any more."""
        if self.pending:
            if len(self.pending) > 1:
                self.pending.sort(key=lambda slot: POINTS.index(slot.source.point))
            self._writer.put(self.pending)
            self.pending = []

    def abandon(self) -> None:
        """Drop the rows that are being made of pieces."""
        for source in self.open:
            source.abandon()
        self.open = []

    def release(self) -> None:
        """Let go of the sources, and of the parameters with them: no row is made any more."""
        self.pieces, self.before, self.at, self.open = [], [], [], []

    def give_up(self, step: int, error: Exception) -> None:
        """Print that a row could not be staged; drop those that are being made."""
        fact = f"{type(error).__name__}: {error}"
        self.drop("staging", f"cannot copy the gradients of step {step}: {fact}")
        self.abandon()

    def _begun(self, source: Source, step: int) -> bool:
        if source.begin(step):
            return True
        self._admission.no_slot(source, step)
        return False

    def _stage(self, source: Source, step: int) -> None:
        if not self._admission.affordable(source, step):
            return
        try:
            slot = source.stage(step)
        except Exception as error:
            self.give_up(step, error)
            return
        if slot is None:
            self._admission.no_slot(source, step)
            return
        self._add(slot)

    def _end_pieces(self, step: int) -> None:
        for source in self.open:
            begun = -1 if source.slot is None else source.slot.step
            if begun != step or not any(source.fires):
                source.abandon()  # no backward since the step before, or attached after it
                continue
            try:
                if source.point == "local" and not self._together and not self.counted:
                    # a weight used twice under reentrant checkpointing fires twice: most do not
                    counts = Counter(fired for fired in source.fires if fired)
                    self._seen.backwards = counts.most_common(1)[0][0]
                self._add(source.end())
            except Exception as error:
                source.abandon()
                self.give_up(step, error)
        self.open = []

    def _add(self, slot: Slot) -> None:
        self._plan.budget.take(slot.cost)
        self.pending.append(slot)
        if slot.source.densified:
            text = f"the gradient of {slot.source.densified!r} is sparse and is stored dense"
            self._reports.once("sparse", f"{text}, zeros included: its module did not say sparse")

    def _watch(self, step: int) -> None:
        """Print once which parameters have had no gradient for long."""
        gone = self._absence.long_gone(self.pending[0].present) if self.pending else []
        if gone:
            text = f"{len(gone)} parameters had no gradient in {LONG} recorded steps up to {step}"
            self._reports.once("absent", f"{text}: {shortened(gone)}")
