"""Hooks on parameters and around closures."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class LocalHooks:
    """Post-accumulate hooks on parameters, there only while local gradients are due.

    Args:
        tensors: The parameters.
        arrived: Called with the index of a parameter that has got its gradient.
        always: The hooks stay between the steps too, once they are there.
    """

    def __init__(
        self,
        tensors: Sequence[nn.Parameter],
        arrived: Callable[[int], None],
        *,
        always: bool = False,
    ) -> None:
        self._tensors = tensors
        self._arrived = arrived
        self._always = always
        self._handles: list[RemovableHandle] = []

    def want(self, wanted: bool) -> None:
        """Register the hooks, or remove them where they are not wanted."""
        if not wanted and not self._always:
            self.remove()
        elif not self._handles:
            self._handles = [
                hook_first(tensor, self._after(index))
                for index, tensor in enumerate(self._tensors)
            ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _after(self, index: int) -> Callable[[Tensor], None]:
        arrived = self._arrived  # not self: torch holds hooks out of the garbage collector's sight
        return lambda _: arrived(index)


def hook_first(tensor: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Register a post-accumulate hook that runs before the others.

    A frozen parameter takes none, but keeps the one it has: it may be unfrozen later.
    """
    frozen = not tensor.requires_grad
    if frozen:
        tensor.requires_grad_(True)
    try:
        handle: RemovableHandle = tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    finally:
        if frozen:
            tensor.requires_grad_(False)
    # an optimizer in backward frees the gradient in a hook of its own; torch calls them in the
    # order in which they entered the dictionary
    hooks: Any = tensor._post_accumulate_grad_hooks
    others = [(key, value) for key, value in hooks.items() if key != handle.id]
    for key, value in others:
        del hooks[key]
        hooks[key] = value
    return handle


def ids_held(optimizers: Iterable[Optimizer]) -> list[int]:
    """Identities of the tensors that optimizers hold, in their order."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return [id(tensor) for group in groups for tensor in group["params"]]


def untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same hook, which a compiled optimizer step calls and does not compile."""
    left_alone: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return left_alone


def inside(optimizers: Sequence[Any]) -> bool:
    """Whether a method of one of them is running, as when a wrapper steps what it wraps."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if any(frame.f_locals.get("self") is one for one in optimizers):
            return True
    return False


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure among what `optimizer.step` was given, the optimizer itself first."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return closure if callable(closure) else None


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another closure."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs
