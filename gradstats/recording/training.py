"""Weak references to a training: a recording neither keeps it alive nor outlives it."""

import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer


class Training:
    """A model and its optimizers, held weakly.

    Args:
        model: The module that is trained, without wrappers.
        optimizers: The optimizers that are recorded.
        ended: Called when the model and all optimizers are gone. Held as it is: pass a function
            that keeps nothing alive, see `weakly`.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], ended: Callable[[], None]
    ) -> None:
        self._ended = ended
        self._model = weakref.ref(model, self._lost)
        self._optimizers = [weakref.ref(one, self._lost) for one in optimizers]
        # enough of an optimizer to describe the last rows with, once it is gone
        self._last = [SimpleNamespace(param_groups=one.param_groups) for one in optimizers]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers; in place of one that is gone, something with its parameter groups."""
        pairs = zip(self._optimizers, self._last, strict=True)
        return [cast(Optimizer, reference() or last) for reference, last in pairs]

    @property
    def stepping(self) -> bool:
        """Whether an optimizer is left, which may take another step."""
        return any(reference() is not None for reference in self._optimizers)

    def forget(self) -> None:
        """Let go of the parameter groups, when nothing is recorded any more."""
        self._last = [SimpleNamespace(param_groups=[]) for _ in self._last]

    def _lost(self, _: Any) -> None:
        if self._model() is None and not self.stepping:
            self._ended()


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """The same call, without keeping the method's object alive; afterwards it does nothing.

    For what torch holds in C++, where Python's garbage collector does not look (hooks on
    parameters, communication hooks), and for what lives as long as the process.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        bound = reference()
        if bound is not None:
            bound(*args)

    return call
