"""What a recording does when torch, or a hook, shows it a part of a training step."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradstats.recording.backward_passes import BackwardPasses
from gradstats.recording.current_step import CurrentStep
from gradstats.recording.hooks import ids_held, inside
from gradstats.recording.rounds import Rounds
from gradstats.recording.step_detectors import StepDetector

Reduced = tuple[Tensor, Tensor, bool]


class Observer:
    """Passes each event of a training on to the step under way; a `torch_patches.Listener`.

    Args:
        current: The step under way.
        detector: Finds out when a step begins and when it is over.
        rounds: Of pseudo-gradients.
        passes: Counts backward passes.

    Attributes:
        unrecorded: Steps that other optimizers took over recorded parameters.
    """

    def __init__(
        self,
        current: CurrentStep,
        detector: StepDetector,
        rounds: Rounds,
        passes: BackwardPasses,
    ) -> None:
        self.unrecorded = 0
        self._current = current
        self._detector = detector
        self._rounds = rounds
        self._passes = passes

    def after_accumulation(self, index: int) -> None:
        """A parameter has got its gradient, which no reduction has changed yet."""
        self._detector.arrived(index)
        if self._current.rows.open and not self._current.repeated:
            self._current.put(index, ("local",))

    def put_locals(
        self, parameters: Iterable[Tensor], gradients: Callable[[], Iterable[Reduced]]
    ) -> None:
        """See `Capture.put_locals`."""
        current = self._current
        for index in current.indices(parameters):
            self._detector.arrived(index)

        def put() -> None:
            for parameter, grad, add in gradients():
                if id(parameter) in current.index:
                    index = current.index[id(parameter)]
                    current.rows.put(index, ("local",), grad, add=add)

        if current.rows.open and not current.repeated:
            current.guard.piece(put, lambda error: current.rows.give_up(current.number, error))

    # --- backward passes ---

    def after_backward_hook(self, index: int | None = None) -> None:
        """A hook shows that a backward pass is done, or that it has reached a parameter."""
        if index is not None:
            self._detector.arrived(index)
        if not self._current.repeated:
            self._current.seen.count_backward()

    def before_backward(self) -> None:
        """A backward pass begins."""
        self._passes.before()

    def after_backward(self) -> None:
        """A backward pass has ended."""
        self._passes.after()

    def zeroed(self, parameters: Iterable[Tensor]) -> None:
        """What was seen of these gradients belongs to a batch that makes no step."""
        if self._current.due and not self._current.repeated:
            self._current.piece(lambda: self._leave_out(parameters))

    def _leave_out(self, parameters: Iterable[Tensor]) -> None:
        indices = self._current.indices(parameters)
        left_out = {index for index in indices if not self._detector.is_over(index)}
        if left_out:
            self._current.seen.backwards = 0
            self._current.rows.restart(left_out)

    # --- clipping ---

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Stage the rows that show gradients before clipping."""
        if self._ignores_clipping(parameters):
            return
        current, indices = self._current, self._current.indices(parameters)
        for index in indices:
            self._detector.arrived(index)
        if current.due:
            current.guard.step(current.active, lambda: self._detector.before_clipping(indices))

    def _ignores_clipping(self, parameters: list[Tensor]) -> bool:
        """Whether no row is about these gradients."""
        if self._rounds.between or self._current.repeated:
            return True
        return self._current.index.keys().isdisjoint(map(id, parameters))

    def after_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Note the norm, if it covers all recorded gradients."""
        if self._current.due and not self._ignores_clipping(parameters):
            clipped = self._current.indices(parameters)
            self._current.piece(lambda: self._note_clipping(clipped, limit, norm))

    def _note_clipping(self, clipped: set[int], limit: float, norm: Tensor) -> None:
        others = (one for i, one in enumerate(self._current.tensors) if i not in clipped)
        left = any(one.grad is not None for one in others)
        self._current.seen.clip(norm, limit, clipped, whole=not left)
        self._current.marks.mark()

    # --- steps that no hook shows ---

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """Call `step`; if the scaler does not call the optimizer then, record a skipped step."""
        optimizers = self._current.training.optimizers
        numbers = [n for n, one in enumerate(optimizers) if one is optimizer]
        if not numbers:
            return step()
        before = self._current.number
        self._current.piece(lambda: self._before_scaler(optimizer, scaler))
        try:
            result = step()
        except BaseException:
            self._current.rows.settled = False  # no step: the gradients may change yet
            raise
        self._detector.after_scaler(numbers[0], before)
        return result

    def _before_scaler(self, optimizer: Any, scaler: Any) -> None:
        self._current.seen.scale(scaler, optimizer)
        self._detector.before_scaler()

    def other_step(self, optimizer: Optimizer) -> None:
        """Count the step of an optimizer that is not recorded and updates recorded parameters."""
        optimizers = self._current.training.optimizers
        if any(optimizer is one for one in optimizers) or self._current.guard.away:
            return
        if not self._current.rows.named:  # else it is an inner optimizer
            self._current.piece(lambda: self._note_other(optimizer))

    def _note_other(self, optimizer: Optimizer) -> None:
        recorded, optimizers = self._current.index, self._current.training.optimizers
        if recorded.keys().isdisjoint(ids_held([optimizer])) or inside(optimizers):
            return
        self.unrecorded += 1
        name = type(optimizer).__name__
        text = f"another optimizer ({name}) updates recorded parameters: its steps are no rows"
        self._current.reports.once(
            "other", f"{text}; capture with it, or with all of them as a list"
        )
