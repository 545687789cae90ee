"""Callbacks that record gradients inside the training loops of Lightning and transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.integrations.lightning import LightningCallback
    from gradstats.integrations.transformers import TransformersCallback

__all__ = ["LightningCallback", "TransformersCallback"]

_HOMES = {"LightningCallback": "lightning", "TransformersCallback": "transformers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"gradstats.integrations.{_HOMES[name]}"), name)
