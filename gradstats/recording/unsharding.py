"""The input of FSDP2's reduce-scatter: whose gradients it holds, and how they are laid out."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def whole_gradients(
    flat: Tensor, world: int, layouts: Sequence[tuple[tuple[int, ...], int]]
) -> Iterator[Tensor]:
    """Cut the input of a reduce-scatter into the gradients of whole parameters.

    Args:
        flat: `[world × shard]`; row r, of length shard, goes to rank r. In a row, the parameters'
            shards follow each other, each padded to ceil(d / world) along its dimension.
        world: Number of shards.
        layouts: Shape and sharded dimension of every parameter.

    Yields:
        The gradients, in their shapes.

    Example:
        >>> flat = torch.tensor([0.0, 1.0, 9.0, 2.0, 0.0, 8.0])
        >>> [grad.tolist() for grad in whole_gradients(flat, 2, [((3,), 0), ((2,), 0)])]
        [[0.0, 1.0, 2.0], [9.0, 8.0]]
    """
    rows, start = flat.view(world, -1), 0
    for shape, dim in layouts:
        cut = (*shape[:dim], math.ceil(shape[dim] / world), *shape[dim + 1 :])
        stop = start + math.prod(cut)
        if dim == 0:
            whole = rows[:, start:stop].reshape(world * cut[0], *cut[1:])[: shape[0]]
        else:  # sharded evenly: FSDP refuses others
            whole = torch.cat([row[start:stop].view(cut) for row in rows], dim)
        start = stop
        yield whole


def divided_before(factor: float) -> int:
    """What FSDP divides float16 gradients by before their sum, of the whole divisor `factor`.

    It is a power of two near the root of the divisor; the rest is divided after the sum.
    """
    divided = 1
    while factor % divided == 0 and factor / divided > divided:
        divided *= 2
    return divided


def members_of(
    parameters: Sequence[Any], fired: Sequence[Any] | None, numel: int, world: int
) -> Sequence[Any]:
    """The parameters whose gradients make up an input of `numel` elements.

    Raises:
        RuntimeError: Neither those that got a gradient nor all that are trained.
    """
    trained = [one for one in parameters if one.sharded_param.requires_grad]
    for members in (fired, trained):
        if members is not None and sum(_padded(one, world) for one in members) == numel:
            return members
    raise RuntimeError(
        f"the reduce-scatter of {numel} elements is not that of the {len(trained)} parameters "
        "of its module; attach before the forward pass"
    )


def _padded(one: Any, world: int) -> int:
    """Elements of a parameter in the input of the reduce-scatter."""
    shape, dim = one._orig_size, one.fsdp_placement.dim
    return int(math.ceil(shape[dim] / world) * world * math.prod(shape) // max(1, shape[dim]))


class Fired:
    """Which parameters got a gradient: FSDP leaves the others out of the reduction.

    What gets a gradient is the unsharded parameter, which FSDP makes in the first forward pass.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[Any]) -> None:
        self._parameters = parameters
        self._got: set[int] = set()
        self._handles: list[Any] = []
        self._complete = False
        self._watch()
        if not self._complete:
            self._handles.append(module.register_forward_pre_hook(lambda *_: self._watch()))

    def _watch(self) -> None:
        known = all(hasattr(one, "_unsharded_param") for one in self._parameters)
        if self._complete or not known:
            return
        self._complete = True
        for place, one in enumerate(self._parameters):
            self._handles.append(_after_gradient(one._unsharded_param, self._noting(place)))

    def _noting(self, place: int) -> Callable[[Tensor], None]:
        return lambda _: self._got.add(place)

    def taken(self) -> list[Any] | None:
        """Those since the last call, in the order of the reduction; None where not known."""
        got, self._got = self._got, set()
        if not self._complete:  # forward() was not called, but another method
            self._watch()
            return None
        return [one for place, one in enumerate(self._parameters) if place in got]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _after_gradient(tensor: Any, hook: Callable[[Tensor], None]) -> Any:
    """Register a post-accumulate hook, also on a parameter that is frozen now."""
    frozen = not tensor.requires_grad
    if frozen:
        tensor.requires_grad_(True)
    try:
        return tensor.register_post_accumulate_grad_hook(hook)
    finally:
        if frozen:
            tensor.requires_grad_(False)


class Accumulation:
    """Whether a backward pass adds to the gradients that are there, or begins anew.

    Unlike a gradient, what a reduce-scatter is given is that of one backward pass: those of a step
    are added up here, unless the gradients were set to zero or None in between.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._tensors = list(tensors)
        self._task, self._goes_on = -1, False
        self._left: list[tuple[int, int, int] | None] = []

    def goes_on(self) -> bool:
        """Do the gradients of this backward pass add to earlier ones?"""
        task = torch._C._current_graph_task_id()  # one number per backward pass
        if task != self._task or task == -1:
            self._task = task
            self._goes_on = self._kept()
            torch.autograd.Variable._execution_engine.queue_callback(self._leave)
        return self._goes_on

    def _kept(self) -> bool:
        shards = [one.grad.to_local() for one in self._tensors if one.grad is not None]
        if not shards:
            return False
        if self._state() == self._left:  # as the last backward pass left them
            return True
        return any(bool(shard.any()) for shard in shards)  # not all were set to zero

    def _leave(self) -> None:
        """Remember the gradients at the end of a backward pass."""
        self._left = self._state()

    def _state(self) -> list[tuple[int, int, int] | None]:
        """What changes when gradients do: what is done to a DTensor, or to its shard."""
        grads = [one.grad for one in self._tensors]
        return [
            None if grad is None else (id(grad), grad._version, grad.to_local()._version)
            for grad in grads
        ]
