"""Local gradients by a DDP communication hook: what a compressor in its place would be given."""

import weakref
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gradstats.recording.handle import Capture


def check_comm_hook(model: DistributedDataParallel | None) -> DistributedDataParallel:
    """Check that a communication hook can be registered.

    Raises:
        ValueError: The model is not wrapped, or has a communication hook already.
    """
    if model is None:
        raise ValueError("local_by='comm_hook' needs a model in DistributedDataParallel")
    others = [_name(hook) for hook, *_ in getattr(model, "_comm_hooks", ())]
    if others:
        fact = f"torch allows one communication hook a model, and {others[0]} is registered"
        raise ValueError(f"local_by must be 'hooks' here: {fact}")
    return model


def register_comm_hook(model: DistributedDataParallel | None, handle: Capture) -> None:
    """Record local gradients where DistributedDataParallel hands them to a communication hook.

    The hook then does what the reducer does without one, in the same order: multiply by 1/n, sum.
    It stays when the recording is closed, since torch cannot take one off.
    """
    wrapped = check_comm_hook(model)
    state = weakref.ref(handle), wrapped.process_group  # the reducer holds it out of sight
    wrapped.register_comm_hook(state, _record_and_reduce)


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__qualname__


def _record_and_reduce(
    state: tuple[weakref.ref[Capture], dist.ProcessGroup],
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    reference, group = state
    handle = reference()
    if handle is not None:
        for parameter, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
            handle.put_local(parameter, grad)
    buffer = bucket.buffer().mul_(1 / dist.get_world_size(group))
    work = dist.all_reduce(buffer, group=group, async_op=True)
    future: Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])
