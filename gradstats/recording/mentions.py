"""What a recording says of a training, once."""

from collections.abc import Container, Iterator, Sequence

from torch.optim import Optimizer

from gradstats.recording.messages import Reports, shortened
from gradstats.recording.stats import Spent, stats_of
from gradstats.recording.step_context import Circumstances
from gradstats.recording.writer import Writer
from gradstats.store import Parameter


def surprises(
    optimizers: Sequence[Optimizer],
    held: Sequence[int],
    recorded: Container[int],
    seen: Circumstances,
) -> Iterator[tuple[str, str]]:
    """What the user may not expect of the step under way: subject and text.

    Args:
        optimizers: That are recorded.
        held: Identities of the tensors that they held when the recording began.
        recorded: Identities of those that are recorded.
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


def farewell(
    reports: Reports, writer: Writer, spent: Spent, table: Sequence[Parameter], why: str
) -> None:
    """Say what was recorded, once all of it is written, and why it ends if nobody closed it."""
    text = missing(writer.never_present, table)
    if text:
        reports.once("missing", text)
    reports.news(f"{writer.where}: {why}{stats_of(writer, spent)}")


def missing(never: Sequence[str], table: Sequence[Parameter]) -> str:
    """Say which parameters had no gradient in any row, if this process holds a part of them."""
    here = {parameter.name for parameter in table if parameter.numel}
    gone = [name for name in never if name in here]
    if not gone:
        return ""
    text = f"{len(gone)} parameters had no gradient in any row: {shortened(gone)}"
    if len(gone) == len(here):
        text = f"{text}; an optimizer in backward? pass all optimizers as a list"
    return text
