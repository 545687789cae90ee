"""How many backward passes made the gradients of a step."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradstats.recording.current_step import CurrentStep
from gradstats.recording.hooks import hook_first
from gradstats.recording.marks import Marks


class BackwardPasses:
    """Counts backward passes that made or changed recorded gradients of the step under way.

    Args:
        current: The step under way.
        by_call: Count calls of torch's backward; else hooks count, see `count_by_hook`.
    """

    def __init__(self, current: CurrentStep, *, by_call: bool) -> None:
        self._current = current
        self._by_call = by_call
        self._last = Marks(current.tensors)  # the gradients as the last pass left them
        if any(tensor.grad is not None for tensor in current.tensors):
            current.seen.backwards = None  # how many there were before, nobody knows
            self._last.mark()

    def before(self) -> None:
        """Without gradients, the next backward pass is the first of its step."""
        if self._counting and all(tensor.grad is None for tensor in self._current.tensors):
            self._current.seen.backwards = 0

    def after(self) -> None:
        """Count a backward pass that has ended."""
        if self._counting:
            self._current.piece(self._count)

    @property
    def _counting(self) -> bool:
        return self._by_call and self._current.due and not self._current.repeated

    def _count(self) -> None:
        tensors = self._current.tensors
        changed = self._last.changed(range(len(tensors)))
        self._last.mark(changed)
        if any(tensors[index].grad is not None for index in changed):
            self._current.seen.count_backward()

    def forget(self) -> None:
        """Let go of the parameters."""
        self._last.forget()


def count_by_hook(current: CurrentStep, after: Callable[[int], None]) -> Iterable[RemovableHandle]:
    """A hook on the last parameter that is trained, called with its index in every pass."""
    trained = [index for index, one in enumerate(current.tensors) if one.requires_grad]
    index = trained[-1] if trained else len(current.tensors) - 1

    def count(_: Tensor) -> None:
        after(index)

    yield hook_first(current.tensors[index], count)
