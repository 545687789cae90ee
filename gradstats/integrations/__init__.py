"""Recording and compression in the training loops of Lightning, transformers and accelerate."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.integrations.accelerate_compression import compress
    from gradstats.integrations.compression_callback import CompressionCallback
    from gradstats.integrations.lightning import LightningCallback
    from gradstats.integrations.lightning_compression import LightningCompression
    from gradstats.integrations.transformers import TransformersCallback
    from gradstats.integrations.transformers_compression import TransformersCompression

__all__ = [
    "CompressionCallback",
    "LightningCallback",
    "LightningCompression",
    "TransformersCallback",
    "TransformersCompression",
    "compress",
]

_HOMES = {
    "CompressionCallback": "compression_callback",
    "LightningCallback": "lightning",
    "LightningCompression": "lightning_compression",
    "TransformersCallback": "transformers",
    "TransformersCompression": "transformers_compression",
    "compress": "accelerate_compression",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"gradstats.integrations.{_HOMES[name]}"), name)
