"""What happens around an optimizer step and no hook tells: clipping, loss scaling, skipped steps.

While a recording is on, two functions of torch also tell it: the inner half of `clip_grad_norm_`,
which knows the norm and has not clipped yet, and `GradScaler.step`, which knows the loss scale and
whether the optimizer was called. Both still do what they did. Libraries that clip or scale by
calling them (accelerate, transformers, Lightning) are seen as well; a script that clips by a
formula of its own, or with `clip_grad_value_`, is not.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad


class Listener(Protocol):
    """Who is told."""

    def before_clipping(self, parameters: list[Tensor], limit: float, norm: Tensor) -> None:
        """Gradients of these parameters are about to be multiplied by min(1, limit / norm)."""

    def scaled_step(self, optimizer: Any, scaler: Any, step: Callable[[], Any]) -> Any:
        """A scaler that is on is about to step this optimizer: call ``step`` and return that."""


_LISTENERS: list[Listener] = []
_CLIP = "_clip_grads_with_norm_"  # in torch >= 2.6; where it is missing, clipping is not seen
_PLACES = ((clip_grad, _CLIP), (torch.nn.utils, "clip_grads_with_norm_"))


def listen(listener: Listener) -> None:
    """Tell ``listener`` from now on."""
    if not _LISTENERS:
        for owner, name in _PLACES:
            if hasattr(owner, name):
                setattr(owner, name, _clip(getattr(owner, name)))
        torch.amp.GradScaler.step = _step(torch.amp.GradScaler.step)  # type: ignore[method-assign]
    _LISTENERS.append(listener)


def forget(listener: Listener) -> None:
    """Tell ``listener`` no more; after the last one torch is as it was."""
    if listener not in _LISTENERS:
        return
    _LISTENERS.remove(listener)
    if not _LISTENERS:
        for owner, name in _PLACES:
            if hasattr(getattr(owner, name, None), "told_by_gradstats"):
                setattr(owner, name, getattr(owner, name).__wrapped__)
        step: Any = torch.amp.GradScaler.step
        if hasattr(step, "told_by_gradstats"):
            torch.amp.GradScaler.step = step.__wrapped__  # type: ignore[method-assign]


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
        if not torch.compiler.is_compiling():
            total_norm = _everywhere(total_norm)
            for listener in tuple(_LISTENERS):
                listener.before_clipping(parameters, max_norm, total_norm)
        return original(parameters, max_norm, total_norm, *args, **kwargs)

    clip.told_by_gradstats = True  # type: ignore[attr-defined]
    return clip


def _everywhere(norm: Tensor) -> Tensor:
    """The norm with its value on every process.

    That of sharded gradients (DTensor) arrives as one part a process. Clipping adds them up in one
    collective; to do it here takes its place, so that processes without a recording keep step.
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

    step.told_by_gradstats = True  # type: ignore[attr-defined]
    return step
