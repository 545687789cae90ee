"""What a recording prints on stderr: news that can be silenced, and each fault once."""

import contextlib
import sys
from collections.abc import Container, Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from gradstats.recording.stats import Spent, stats_of
from gradstats.recording.step_context import Circumstances
from gradstats.recording.writer import Writer
from gradstats.store import Parameter

#: Recorded steps without a gradient after which a parameter is pointed out.
LONG = 100


class Reports:
    """Lines on stderr. Writing one never raises: it happens inside somebody's training.

    Args:
        quiet: Print faults only.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._printed: set[str] = set()

    def news(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            write_line(text)

    def once(self, subject: str, text: str) -> None:
        """Print a line about `subject`, the first time only."""
        if subject not in self._printed:
            self._printed.add(subject)
            write_line(text)


def shortened(names: Sequence[str], most: int = 4) -> str:
    """The first of some names.

    Example:
        >>> shortened(["a", "b", "c"], most=2)
        'a, b, …'
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def write_line(text: str) -> None:
    """Write one line to stderr, if there is one that takes it."""
    # RuntimeError: the garbage collector ends a recording in the middle of another write
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        sys.stderr.write(f"gradstats: {text}\n")
        sys.stderr.flush()


class Absence:
    """Counts recorded steps in which a parameter had no gradient.

    Args:
        names: Names of the parameters.
        held: Whether this process holds a part of each.
    """

    def __init__(self, names: Sequence[str], held: Sequence[bool]) -> None:
        self._names = names
        self._held = np.array(held)
        self._absent = np.zeros(len(names), dtype=np.int64)
        self._all_present = True  # none was absent in the last step

    def long_gone(self, present: np.ndarray) -> list[str]:
        """Count a step in; name the parameters whose absence has become long with it."""
        before = self._all_present
        self._all_present = np.count_nonzero(present) == len(present)
        if before and self._all_present:  # nothing to count: most steps of most trainings
            return []
        self._absent += 1
        self._absent[present] = 0
        if self._absent.max() < LONG:
            return []
        now = (self._absent == LONG) & self._held
        return [name for name, gone in zip(self._names, now, strict=True) if gone]


def surprises(
    optimizers: Sequence[Optimizer],
    held: Sequence[int],
    recorded: Container[int],
    seen: Circumstances,
) -> Iterator[tuple[str, str]]:
    """What the user may not expect of the step under way: subject and text.

    Args:
        optimizers: The recorded optimizers.
        held: Identities of the tensors that they held when the recording began.
        recorded: Identities of the recorded parameters.
        seen: What was seen around the step.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    now = [id(tensor) for group in groups for tensor in group["params"]]
    if now != held:
        new = len(set(now).difference(held))
        gone = sum(one in recorded for one in set(held).difference(now))
        if new:
            text = f"the optimizer got {new} new parameters, which are not recorded"
            yield "groups", f"{text}; attach after adding them"
        if gone:
            text = f"the optimizer no longer holds {gone} of the recorded parameters"
            yield "gone", f"{text}: their rows are gradients that it does not get"
    if getattr(optimizers[0], "grad_scale", None) is not None:
        text = "the optimizer is fused and unscales by itself: rows of reduced gradients are"
        rest = "multiplied by GradScaler's loss scale (coordinate loss_scale, unscaled = 0)"
        yield "fused", f"{text} {rest}; use fused=False to avoid it"
    if seen.clipped_in_parts:
        text = "clip_grad_norm_ was called for a part of the gradients, or several times"
        yield "clips", f"{text}: clip_norm and clip_coefficient are NaN"


def print_summary(
    reports: Reports, writer: Writer, spent: Spent, table: Sequence[Parameter], why: str
) -> None:
    """Print what was recorded, once all of it is written.

    Args:
        reports: Prints.
        writer: Has written the rows.
        spent: What was done in the training's thread.
        table: The parameters as this process holds them.
        why: Why the recording ends, if nobody closed it; else "".
    """
    text = _missing(writer.never_present, table)
    if text:
        reports.once("missing", text)
    reports.news(f"{writer.where}: {why}{stats_of(writer, spent)}")


def _missing(never: Sequence[str], table: Sequence[Parameter]) -> str:
    """Which parameters had no gradient in any row, if this process holds a part of them."""
    held = {parameter.name for parameter in table if parameter.numel}
    gone = [name for name in never if name in held]
    if not gone:
        return ""
    text = f"{len(gone)} parameters had no gradient in any row: {shortened(gone)}"
    if len(gone) == len(held):
        text = f"{text}; an optimizer in backward? pass all optimizers as a list"
    return text


def lost_loss(reports: Reports, loss: object, error: Exception) -> None:
    """Print once why a loss could not be logged: what it must be and what was given."""
    given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    fact = f"loss must be a number or a tensor of one element, got {given}"
    if isinstance(loss, Tensor) and loss.numel() == 1:
        fact = f"{type(error).__name__}: {error}"
    reports.once("loss", f"cannot log the loss: {fact}; training goes on")
