"""Events around an optimizer step that no hook shows: clipping, loss scaling, skipped steps.

While a recording is on, functions of torch also call it: the inner half of `clip_grad_norm_`,
which knows the norm and has not clipped yet, FSDP1's method of that name, which knows it when it
has, `GradScaler.step`, which knows the loss scale and whether the optimizer was called,
`zero_grad` of optimizers and modules, and `backward`. They still do what they did. Libraries that
clip or scale by calling them (accelerate, transformers, Lightning) are seen as well; a script that
clips by a formula of its own, or with `clip_grad_value_`, is not.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradstats.recording.hooks import untraced


class Listener(Protocol):
    """What is called at each event."""

    def before_clipping(self, parameters: list[Tensor]) -> None:
        """Gradients of these parameters are about to be clipped."""

    def after_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """They were multiplied by min(1, limit / norm)."""

    def before_backward(self) -> None:
        """A backward pass begins."""

    def after_backward(self) -> None:
        """A backward pass has ended."""

    def zeroed(self, parameters: Iterable[Tensor]) -> None:
        """The gradients of these parameters are about to be zeroed or freed."""

    def other_step(self, optimizer: Any) -> None:
        """An optimizer is about to step, one of the listener's or another."""

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """A scaler that is on is about to step this optimizer: call `step` and return that."""


# weak: a training that is given up must not stay because torch's functions know its recording
_LISTENERS: weakref.WeakKeyDictionary[Listener, None] = weakref.WeakKeyDictionary()
_HOOKS: list[Any] = []
_CLIP = "_clip_grads_with_norm_"  # in torch >= 2.6; where it is missing, clipping is not seen
_BACKWARD = "_engine_run_backward"  # where it is missing, micro-batches are not counted
_inside_fsdp = False
_depth = 0  # of backward passes: reentrant checkpointing runs one inside another


def _places() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """What is replaced: its owner, its name, and what makes the replacement."""
    yield *_inner(clip_grad, _CLIP), _clip
    yield torch.amp.GradScaler, "step", _step
    yield torch.autograd, _BACKWARD, _backward
    yield torch.optim.Optimizer, "zero_grad", _zero
    yield torch.nn.Module, "zero_grad", _zero
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if hasattr(fsdp, "FullyShardedDataParallel"):
        yield fsdp.FullyShardedDataParallel, "clip_grad_norm_", _fsdp_clip


def _inner(module: Any, name: str) -> tuple[Any, str]:
    """The function inside torch's decorator, so that callers that imported it by name are seen.

    The decorator keeps it in a closure, whose cell is written to as an attribute is.
    """
    cells = getattr(getattr(module, name, None), "__closure__", None) or ()
    for cell in cells:
        if callable(cell.cell_contents):
            return cell, "cell_contents"
    return module, name


def any_step(optimizer: Any, *_: Any) -> None:
    """A hook of all optimizers."""
    for listener in tuple(_LISTENERS):
        listener.other_step(optimizer)


def steps_are_passed_on() -> None:
    """Leave calls of `any_step` to the caller: torch takes no such hook within a step."""
    _HOOKS.append(SimpleNamespace(remove=lambda: None))


def listen(listener: Listener) -> None:
    """Call `listener` from now on."""
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_pre_hook(untraced(any_step)))
    for owner, name, patch in _places():
        original = getattr(owner, name, None)
        if original is not None and not hasattr(original, "patched_by_gradstats"):
            replacement: Any = patch(original)
            replacement.patched_by_gradstats = True
            setattr(owner, name, replacement)
    _LISTENERS[listener] = None


def forget(listener: Listener) -> None:
    """Call `listener` no more; after the last one torch is as it was."""
    _LISTENERS.pop(listener, None)
    while _HOOKS and not _LISTENERS:
        _HOOKS.pop().remove()
    for owner, name, _ in () if _LISTENERS else _places():
        if hasattr(getattr(owner, name, None), "patched_by_gradstats"):
            setattr(owner, name, getattr(owner, name).__wrapped__)


def _clip(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def clip(
        parameters: Tensor | Iterable[Tensor],
        max_norm: float,
        total_norm: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if torch.compiler.is_compiling() or _inside_fsdp:
            return original(parameters, max_norm, total_norm, *args, **kwargs)
        total_norm = _everywhere(total_norm)
        for listener in tuple(_LISTENERS):
            listener.before_clipping(parameters)
        original(parameters, max_norm, total_norm, *args, **kwargs)
        for listener in tuple(_LISTENERS):
            listener.after_clipping(parameters, max_norm, total_norm)
        return None

    return clip


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        global _depth
        outermost = kwargs.get("accumulate_grad") and not _depth
        shown = outermost and not torch.compiler.is_compiling()
        for listener in tuple(_LISTENERS) if shown else ():
            listener.before_backward()
        _depth += 1
        try:
            return original(*args, **kwargs)
        finally:
            _depth -= 1
            for listener in tuple(_LISTENERS) if shown else ():
                listener.after_backward()

    return backward


def _zero(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in () if torch.compiler.is_compiling() else tuple(_LISTENERS):
            listener.zeroed(_parameters(owner))
        return original(owner, *args, **kwargs)

    return zero_grad


def _parameters(owner: Any) -> Iterator[Tensor]:
    """Of an optimizer or a module."""
    if isinstance(owner, torch.nn.Module):
        yield from torch.nn.Module.parameters(owner)
        return
    for group in owner.param_groups:
        yield from group["params"]


def _fsdp_clip(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def clip(model: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        global _inside_fsdp
        parameters = list(model.parameters())
        for listener in tuple(_LISTENERS):
            listener.before_clipping(parameters)
        _inside_fsdp = True
        try:
            norm = original(model, max_norm, *args, **kwargs)
        finally:
            _inside_fsdp = False
        for listener in tuple(_LISTENERS):
            listener.after_clipping(parameters, max_norm, norm)
        return norm

    return clip


def _everywhere(norm: Tensor) -> Tensor:
    """The norm with its value on every process.

    The norm of sharded gradients (DTensor) arrives as one part per process. Clipping adds them up
    in one collective; this one takes its place, so that processes without a recording keep step.
    """
    if not hasattr(norm, "redistribute"):
        return norm
    from torch.distributed.tensor import Replicate

    whole: Tensor = norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim)  # type: ignore[attr-defined]
    return whole


def _step(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            return original(scaler, optimizer, *args, **kwargs)

        if scaler.is_enabled():
            for listener in tuple(_LISTENERS):
                call = functools.partial(listener.scaled_step, optimizer, scaler, call)
        return call()

    return step
