"""Which process of a training records gradients, and at which points they can be seen."""

import gc
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.recording.selection import Selected, unwrap_model
from gradstats.recording.sharding import fsdp1_modules
from gradstats.recording.slots import POINTS, Point
from gradstats.settings import SettingError, several
from gradstats.store import GradientStore, Parameter, Place, beside, table_difference

_PATIENCE = timedelta(seconds=60)
_MEETINGS = itertools.count()


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes.

    From the process group; before there is one, from the environment that a launcher such as
    torchrun sets.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return (rank, world) if 0 <= rank < world else (0, 1)
    except (KeyError, ValueError):
        return 0, 1


def group_is_missing() -> bool:
    """Whether rank and world come from the environment alone."""
    return not (dist.is_available() and dist.is_initialized())


def check_points(at: str | Sequence[str]) -> list[str]:
    """The points that are asked for, "auto" among them.

    Raises:
        ValueError: No such point, or none.
    """
    asked = list(several(at))
    unknown = [point for point in asked if point not in (*POINTS, "auto")]
    if unknown or not asked:
        rule = f"must be auto or some of {', '.join(POINTS)}"
        raise SettingError("at", f"{rule}, got {unknown[0] if unknown else at!r}")
    return asked


@dataclass(frozen=True)
class Distribution:
    """How a training is spread.

    Attributes:
        rank: This process.
        world_size: Number of processes.
        ddp: The DistributedDataParallel around the model, if there is one.
        sharded: Each process holds a part of every parameter.
        first: Of the processes with the same replicated parameters this one records.
        one_model: All processes are known to hold the same parameters.
        by: Name of what shards parameters, if anything does.
        fully: They are DTensors: a reduce-scatter of `fully_shard` may show gradients whole.
        meeting: How many recordings this process has begun before.
    """

    rank: int
    world_size: int
    ddp: DistributedDataParallel | None = None
    sharded: bool = False
    first: bool = True
    one_model: bool = True
    by: str = ""
    fully: bool = False
    meeting: int = field(default_factory=lambda: next(_MEETINGS))

    def points(self, at: str | Sequence[str]) -> tuple[Point, ...]:
        """The points to record on this process; none where another process does.

        Raises:
            ValueError: No such point, or nothing to see there.
        """
        asked = check_points(at)
        if "auto" in asked:
            auto = "local" if self.ddp is not None else "reduced"
            asked = [auto if point == "auto" else point for point in asked]
        if "local" in asked and self.fully and len(set(asked)) > 1:
            raise ValueError(
                f"at must be 'local' alone under {self.by}, got {asked!r}: local rows hold whole "
                "parameters and the others shards; call capture again with another path"
            )
        if "local" in asked and self.by and not self.fully:
            raise ValueError(
                f"at must not be 'local' under {self.by}: it reduces gradients before any hook "
                "sees them; use at='reduced', which records each process's own shard"
            )
        everywhere = self.sharded or self.first
        own = ("local", "outer")
        return tuple(p for p in POINTS if p in asked and (p in own or everywhere))


def distribution(model: nn.Module, chosen: Sequence[Selected]) -> Distribution:
    """Look at how a model is trained.

    Raises:
        ValueError: By something that hides gradients altogether.
    """
    rank, world = rank_and_world()
    for one in chosen:
        if hasattr(one.tensor, "ds_id") or hasattr(one.tensor, "ds_tensor"):
            raise ValueError(
                f"cannot record {one.name!r}: DeepSpeed ZeRO keeps its gradient in buffers of its "
                "own, where only its accessors reach; train without ZeRO to record"
            )
    for module in model.modules():
        if type(module).__name__ == "DeepSpeedEngine":
            raise ValueError(
                "cannot record a DeepSpeedEngine: gradients are in buffers of its own, where only "
                "its accessors reach; pass engine.module and a torch optimizer, without ZeRO"
            )
    if fsdp1_modules(model):
        by = "FullyShardedDataParallel (FSDP1)"
        return Distribution(rank, world, sharded=True, one_model=False, by=by)
    if any(hasattr(one.tensor, "to_local") for one in chosen):
        by = "DTensor (fully_shard, FSDP2)"
        return Distribution(rank, world, sharded=True, one_model=False, by=by, fully=True)
    ddp = _ddp_around(model) if world > 1 else None
    if ddp is None:
        return Distribution(rank, world, first=rank == 0, one_model=world == 1)
    group = ddp.process_group  # of a pipeline's stage, perhaps
    first, among = dist.get_rank(group) == 0, dist.get_world_size(group)
    return Distribution(rank, world, ddp, first=first, one_model=among == world)


def _ddp_around(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper of a model: itself, a part of it, or something that holds it."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return module
    inner = unwrap_model(model)
    # type() and not isinstance(): objects that pretend to be others may not survive being asked
    wrappers = (one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel))
    return next((one for one in wrappers if unwrap_model(one) is inner), None)


def another_model(spread: Distribution, path: Path | Place, own: Sequence[Parameter]) -> bool:
    """Whether this process holds other parameters than rank 0 records, as a pipeline's stage does.

    What has the same names, shapes and dtypes cannot be told apart.
    """
    if spread.ddp is not None or spread.first or not dist.is_initialized():
        return False
    try:
        store, _ = shared_store(spread, path, _never)
    except RuntimeError:  # rank 0 records nothing
        return False
    with store:
        return table_difference(store.parameters, own) is not None


def _never() -> tuple[GradientStore, int]:
    raise AssertionError("rank 0 creates the store")


def shared_store(
    spread: Distribution, path: Path | Place, create: Callable[[], tuple[GradientStore, int]]
) -> tuple[GradientStore, int]:
    """Create a store on rank 0 and open it on the others, without a collective.

    Args:
        spread: this process and the others.
        path: of the store; all processes see the same folder there.
        create: makes the store and returns the segment of it that begins.

    Rank 0 writes the outcome to the process group's key-value store; a rank that waits in vain, or
    does not see the store, raises rather than hang.

    Raises:
        RuntimeError: Rank 0 could not create it, or did not try.
    """
    create = partial(_created, spread, create)
    if spread.world_size == 1 or not torch.distributed.is_initialized():
        return create()
    meeting = torch.distributed.distributed_c10d._get_default_store()
    # torchrun may hand the store of the attempt before to the next, with all its keys
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"gradstats/{attempt}/{spread.meeting}"
    if spread.rank == 0:
        return _announced(meeting, key, create)
    try:
        meeting.wait([key], _PATIENCE)
    except (RuntimeError, torch.distributed.DistError) as error:
        advice = "every rank must call capture, in the same order"
        raise RuntimeError(f"cannot record: rank 0 did not create {path}; {advice}") from error
    outcome = meeting.get(key).decode()
    about, _, name = outcome.partition(" at ")
    segment, _, run = about.partition(" ")
    if not segment.isdecimal():
        raise RuntimeError(f"cannot record: on rank 0, {outcome}")
    return _seen(spread.rank, beside(path, name), run), int(segment)


def _seen(rank: int, path: Path | Place, run: str) -> GradientStore:
    """The store that rank 0 made, and not one that is left on this machine.

    A network's file system may show the one before for a while.
    """
    advice = "use a folder that all share, or at='reduced'"
    if not (path / "zarr.json").exists():
        raise RuntimeError(f"cannot record: rank {rank} does not see {path}; {advice}")
    end = time.monotonic() + _PATIENCE.total_seconds()
    while _run(GradientStore.open(path)) != run:
        if time.monotonic() > end:
            fact = f"rank {rank} sees another run at {path} than rank 0"
            raise RuntimeError(f"cannot record: {fact}; {advice}")
        time.sleep(0.2)
    return GradientStore.open(path, "a")


def _run(store: GradientStore) -> str:
    """What names the run; one of before has no name."""
    return store.run or "nameless"


def _created(
    spread: Distribution, create: Callable[[], tuple[GradientStore, int]]
) -> tuple[GradientStore, int]:
    """Create the store; refuse to go on with shards that were cut for other processes."""
    store, segment = create()
    before = len(store.workers)
    if spread.sharded and segment and before != spread.world_size:
        store.close()
        fact = f"its rows are shards of {before} processes, and there are {spread.world_size} now"
        raise ValueError(f"cannot resume {store.path}: {fact}; write to another path")
    return store, segment


def _announced(
    meeting: Any, key: str, create: Callable[[], tuple[GradientStore, int]]
) -> tuple[GradientStore, int]:
    try:
        store, segment = create()
    except BaseException as error:
        meeting.set(key, f"{type(error).__name__}: {error}")
        raise
    outcome = f"{segment} {_run(store)} at {store.path.name}"
    meeting.set(key, outcome)  # below a command it may be run-2.zarr
    return store, segment
