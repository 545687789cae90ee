"""Lines that a recording prints when it begins: where it writes, and what it records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from torch import nn
from torch.optim import Optimizer

from gradstats.recording.budget import TABLE_BYTES, format_bytes
from gradstats.recording.messages import shortened
from gradstats.recording.processes import Distribution
from gradstats.recording.schedules import Schedule
from gradstats.recording.selection import Selected, left_out, unwrap_model
from gradstats.recording.slots import Point
from gradstats.recording.staging import Source
from gradstats.store import GradientStore, Parameter

SEEN = {
    "local": "of this process, before reduction and clipping",
    "reduced": "as optimizer.step() finds them, before clip_grad_norm_",
    "clipped": "as optimizer.step() finds them, after clipping",
    "outer": "pseudo-gradients of this process, as record() is given them",
}


def size_of(table: Sequence[Parameter]) -> int:
    """Number of elements of a table of parameters."""
    return sum(parameter.numel for parameter in table)


def surprises(
    model: nn.Module, optimizers: Sequence[Optimizer], chosen: Sequence[Selected]
) -> Iterator[str]:
    """What is recorded that one may not expect, and what is not."""
    frozen = left_out(model, optimizers)
    if frozen:
        what = f"{len(frozen)} frozen parameters are not recorded: {shortened(frozen)}"
        yield f"{what}, whose dtypes get no gradients"
    # by the method of torch's class: a model's own parameters() may need an argument
    own = {id(tensor) for tensor in nn.Module.parameters(unwrap_model(model))}
    if not any(id(one.tensor) in own for one in chosen):
        text = "the optimizer holds copies of the parameters, equal in value: the rows are the"
        yield f"{text} gradients of those copies, under the parameters' names"


def introduction(
    store: GradientStore,
    table: Sequence[Parameter],
    sources: Sequence[Source],
    schedule: Schedule,
    limit: int,
) -> Iterator[str]:
    """Yield what is recorded, where to, and how much room it may take."""
    what = f"{len(table)} parameters with {size_of(table):,} elements"
    points = list(dict.fromkeys(source.point for source in sources))
    where = "; ".join(f"{SEEN[point]} (point {point!r})" for point in points)
    yield f"recording to {store.path}: {what}, {where}"
    rows = []
    for source in sources:
        if source.point != points[0]:
            continue
        size = format_bytes(source.nbytes)
        if source.kind == "full":
            rows.append(f"full rows of {size} at {schedule!r}")
        if source.kind == "track":
            rows.append(f"{source.elements:,} elements of every step, {size} each")
        if source.kind == "summary":
            rows.append("a Summary of each parameter at every step")
    free = shutil.disk_usage(store.folder).free
    way = (
        "" if store.folder == store.path else f" in {store.folder}, by way of which they are sent"
    )
    room = f"at most {format_bytes(limit + TABLE_BYTES)}, {format_bytes(free)} free{way}"
    yield f"{'; '.join(rows)}; {room}"


def idle_by_environment(spread: Distribution) -> str:
    """Say why a process is idle that may be alone: the variables may be left from another run."""
    return (
        f"not recorded: RANK and WORLD_SIZE say that this is rank {spread.rank} of "
        f"{spread.world_size}, of which rank 0 records, and there is no process group; if this "
        "process trains alone, unset RANK; else call capture after init_process_group"
    )


def recorder(spread: Distribution, points: Sequence[Point]) -> str:
    """Word which process of a distributed training records what."""
    if spread.sharded:
        return f"rank {spread.rank} of {spread.world_size} records its own shards ({spread.by})"
    if "local" in points or "outer" in points:
        return f"rank {spread.rank} of {spread.world_size} records its own gradients"
    who = f"rank {spread.rank} of {spread.world_size} records"
    return f"{who}; ranks with the same parameters run without recording"
