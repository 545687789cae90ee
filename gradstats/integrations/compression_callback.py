"""One name for the callbacks that compress, whichever trainer is used."""

import importlib
import sys
from typing import Any

from gradstats.compressors import Compressor
from gradstats.exchange.hook_settings import HookSettings
from gradstats.settings import lists_settings

CLASSES = {
    "LightningCompression": ("lightning.pytorch", "pytorch_lightning"),
    "TransformersCompression": ("transformers.trainer_callback",),
}


@lists_settings(HookSettings)
def CompressionCallback(
    compressor: str | Compressor, *, restore: bool = True, **settings: Any
) -> Any:
    """A callback that compresses gradients, for the trainer that this program has imported.

    Args:
        compressor: A spec such as "ef(topk(0.01))", or an instance.
        restore: Whether memories are loaded from a checkpoint; False begins with empty ones.
        **settings: As in `gradstats.ddp_hooks.CompressorState`: by, min_numel, min_dims,
            start_step, seed and check_every.

    Returns:
        `LightningCompression` if `lightning.pytorch` is imported, and `TransformersCompression` if
        the Trainer of transformers is.

    Raises:
        ImportError: Both are imported, or neither; then write the name of the class.
        ValueError: A setting is out of range.
    """
    used = [
        name for name, modules in CLASSES.items() if any(one in sys.modules for one in modules)
    ]
    if len(used) != 1:
        fact = (
            f"{'both' if used else 'neither'} of Lightning and transformers' Trainer are imported"
        )
        remedy = f"write {' or '.join(CLASSES)}"
        raise ImportError(f"cannot choose the callback of a trainer: {fact}; {remedy}")
    kind = getattr(importlib.import_module("gradstats.integrations"), used[0])
    return kind(compressor, restore=restore, **settings)
