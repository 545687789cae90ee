"""Compressed gradients in a training loop of one's own with accelerate."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from gradstats.compressors import Compressor
from gradstats.exchange.hook_settings import HookSettings
from gradstats.integrations.compression import Compression
from gradstats.integrations.memory_files import read_memories, write_memories
from gradstats.settings import from_keywords, lists_settings


@lists_settings(HookSettings)
def compress(
    accelerator: Any,
    model: nn.Module,
    compressor: str | Compressor,
    *,
    restore: bool = True,
    **settings: Any,
) -> Compression:
    """Compress the gradients of a model that `accelerator.prepare` returned; a collective.

    `accelerator.save_state` then writes each worker's memories to `gradstats-rank<r>.pt` in its
    folder, and `accelerator.load_state` loads them; with another number of workers what they had
    not sent is added up. (`register_for_checkpointing` would write the memories of one worker.)

    Args:
        accelerator: The `accelerate.Accelerator`.
        model: The prepared model.
        compressor: A spec such as "ef(topk(0.01))", or an instance.
        restore: Whether `load_state` loads memories; False begins with empty ones.
        **settings: As in `gradstats.ddp_hooks.CompressorState`: by, min_numel, min_dims,
            start_step, seed and check_every.

    Returns:
        The compression; its `state` is the `CompressorState` in use, None where one process trains
        and nothing is compressed.

    Raises:
        ValueError: A setting is out of range, or the model has another communication hook.
        TypeError: Several processes train the model without DistributedDataParallel.

    Example:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        compression = compress(accelerator, model, "ef(topk(0.01))")
    """
    given = {"compressor": compressor, **settings}
    checked = from_keywords(HookSettings, given, verb="compress")
    compression = Compression(checked, restore=restore)
    compression.begin(model, scaler=accelerator.scaler)

    def save(_models: Any, _weights: Any, folder: str | os.PathLike[str]) -> None:
        if compression.state is not None:
            write_memories(folder, compression.state.state_dict())

    def load(_models: Any, folder: str | os.PathLike[str]) -> None:
        if compression.state is not None:
            compression.begin(model, scaler=accelerator.scaler)
        compression.load(lambda: read_memories(folder, *compression.place))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return compression
