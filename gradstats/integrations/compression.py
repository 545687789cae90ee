"""A compressor in a trainer: registered with the trainer's DDP module, its memories kept."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange.hook_settings import HookSettings
from gradstats.integrations.wrappers import ddp_around, explain_without_ddp
from gradstats.recording.messages import write_line

Saved = Mapping[str, Any]  # the state_dict() of one worker
FRESH = "restore=False begins with empty memories"


class InUse:
    """What DistributedDataParallel holds for good: the state in use, which may be replaced.

    Args:
        owner: Whoever registered the hook.
        state: The state in use.
    """

    def __init__(self, owner: "Compression", state: CompressorState) -> None:
        self.owner, self.state = owner, state


def compress_bucket(
    in_use: InUse,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """Exchange a bucket by `compress_hook` with the state in use."""
    return compress_hook(in_use.state, bucket)


class Compression:
    """Compresses what the workers of one training exchange, and keeps the memories.

    Args:
        settings: How gradients are compressed.
        restore: Whether memories are loaded from checkpoints.
    """

    def __init__(self, settings: HookSettings, *, restore: bool = True) -> None:
        self.settings, self.restore = settings, restore
        self._state: CompressorState | None = None
        self._group: Any = None

    @property
    def state(self) -> CompressorState | None:
        """The state of this worker; None before the training, and where nothing is compressed."""
        return self._state

    @property
    def place(self) -> tuple[int, int]:
        """Rank of this worker among those that exchange, and their number."""
        if self._state is None:
            return 0, 1
        return dist.get_rank(self._group), dist.get_world_size(self._group)

    def __repr__(self) -> str:
        return f"Compression({self.described})"

    @property
    def described(self) -> str:
        """The state in use; without one the compressor."""
        spec = str(self.settings.compressor)
        return (
            repr(self._state)
            if self._state is not None
            else f"{spec!r}, not compressing in this process"
        )

    def begin(self, model: nn.Module, *, scaler: Any = None) -> None:
        """Compress the backward passes from now on, with empty memories: a collective.

        Args:
            model: The model as the trainer wraps it.
            scaler: The GradScaler of the training, if there is one.

        Raises:
            ValueError: The model has another communication hook already.
            TypeError: Several processes train the model without DistributedDataParallel.
        """
        self._state = self._group = None
        wrapper = ddp_around(model)
        if wrapper is None:
            self.say(explain_without_ddp(model))
            return
        in_use = _hook_of(wrapper, self)
        keywords = {each.name: getattr(self.settings, each.name) for each in fields(self.settings)}
        named = wrapper.named_parameters()
        group = wrapper.process_group
        state = CompressorState(group, named_parameters=named, scaler=scaler, **keywords)
        if in_use is None:
            wrapper.register_comm_hook(InUse(self, state), compress_bucket)
        else:
            in_use.state = state
        self._state, self._group = state, group

    def load(self, find: Callable[[], Sequence[Saved]]) -> None:
        """Load memories, or fail on all workers alike: a collective.

        Args:
            find: Returns the checkpoints of all workers in order, or nothing if there are none.

        Raises:
            ValueError: They cannot be loaded.
        """
        if self._state is None:
            self._drop(find)
            return
        if not self.restore:
            self.say("memories begin empty, as restore=False asks")
            return
        state, fault, number = self._state, "", 0
        try:
            saved = find()
            number = len(saved)
            if number:
                self._load(state, saved)
        except (ValueError, OSError, RuntimeError) as error:
            fault = str(error)
        faults = self._of_all(fault)
        if any(faults):
            worker, first = next((w, text) for w, text in enumerate(faults) if text)
            rule = f"cannot restore the memories of worker {worker}"
            raise ValueError(f"{rule}: {first}; {FRESH}")
        workers = len(faults)
        if not number:
            self.say("the checkpoint holds no memories of a compressor; they begin empty")
        elif number != workers:
            self.say(f"the memories of {number} workers were added up for {workers}")

    def _drop(self, find: Callable[[], Sequence[Saved]]) -> None:
        dropped = len(find())
        if dropped:
            self.say(f"the memories of {dropped} workers in the checkpoint are dropped")

    def _load(self, state: CompressorState, saved: Sequence[Saved]) -> None:
        rank, workers = self.place
        if len(saved) == workers:
            state.load_state_dict(saved[rank])
        else:
            state.load_state_dict(saved, reshard=True)

    def end(self) -> None:
        """Print what was saved, or that the backward passes went around the hook."""
        if self._state is None:
            return
        if self._state.traffic.volumes["control"].calls:
            self.say(f"compressed: {self._state!r}")
        else:
            fact = "no backward pass went through DistributedDataParallel"
            self.say(f"nothing was compressed: {fact}; call the wrapped model, not the inner one")

    def gathered(self) -> list[Saved]:
        """The checkpoints of all workers, on the first one; nothing on the others: a collective.

        A trainer's checkpoint is written by one process, and each worker has memories of its own.
        """
        if self._state is None:
            return []
        first = self.place[0] == 0
        every: list[Any] | None = None
        if first:
            every = [None] * self.place[1]
        target = dist.get_global_rank(self._group, 0)
        dist.gather_object(self._state.state_dict(), every, target, self._group)
        return every or []

    def kept(self) -> list[Saved]:
        """This worker's checkpoint in every place: for a training that goes on in this process."""
        if self._state is None:
            return []
        return [self._state.state_dict()] * self.place[1]

    def _of_all(self, text: str) -> list[str]:
        texts: list[Any] = [""] * self.place[1]
        dist.all_gather_object(texts, text, group=self._group)
        return texts

    def say(self, text: str) -> None:
        """Print a line, on the first process."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            write_line(text)

    def __getstate__(self) -> dict[str, Any]:
        # trainers copy their callbacks to the processes that they start
        return {**vars(self), "_state": None, "_group": None}


def _hook_of(wrapper: DistributedDataParallel, own: "Compression") -> InUse | None:
    """What `own` has registered with a module in an earlier training; None if nothing is.

    Raises:
        ValueError: Somebody else has registered a hook.
    """
    for hook, owner in getattr(wrapper, "_comm_hooks", ()):
        if isinstance(owner, InUse) and owner.owner is own:
            return owner
        while isinstance(hook, functools.partial):
            hook = hook.func
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        refuse_hook(name)
    return None


def refuse_hook(name: str) -> None:
    """Raise the error for a model that has another communication hook.

    Args:
        name: Name of the hook.

    Raises:
        ValueError: Always.
    """
    fact = f"torch allows one communication hook per model, and {name} is registered"
    remedy = "remove ddp_comm_hook, comm_hook or local_by='comm_hook'"
    raise ValueError(f"cannot compress the gradients: {fact}; {remedy}")
