"""A callback that compresses what the workers of a transformers `Trainer` exchange."""

import gc
import os
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradstats.compressors import Compressor
from gradstats.ddp_hooks import CompressorState
from gradstats.exchange.hook_settings import HookSettings
from gradstats.integrations.compression import Compression, Saved
from gradstats.integrations.memory_files import (
    file_of,
    read_memories,
    weights_digest,
    write_memories,
)
from gradstats.settings import from_keywords, lists_settings


class TransformersCompression(TrainerCallback):
    """Compress gradients in every training of a `Trainer` that torchrun starts on several workers.

    The callback registers `gradstats.ddp_hooks.compress_hook` when the training begins. With one
    process there is nothing to compress, and a line is printed. FSDP, DeepSpeed and DataParallel
    (several GPUs in one process, without torchrun) are refused.

    Each worker writes its memories to `gradstats-rank<r>.pt` in the Trainer's checkpoint.
    `train(resume_from_checkpoint=...)` loads them; with another number of workers what they had
    not sent is added up. Callbacks are not passed the name of that checkpoint: memories are looked
    for in `args.resume_from_checkpoint` and in `output_dir/checkpoint-<step>`, and are loaded only
    if they were saved with the weights that the model has now.

    Args:
        compressor: A spec such as "ef(topk(0.01))", or an instance.
        restore: Whether memories are loaded from a checkpoint; False begins with empty ones.
        checkpoint: Folder of the memories, if it is another one. The weights are not compared.
        **settings: As in `gradstats.ddp_hooks.CompressorState`: by, min_numel, min_dims,
            start_step, seed and check_every.

    Raises:
        ValueError: A setting is out of range.

    Example:
        Trainer(..., callbacks=[TransformersCompression("ef(topk(0.01))")])
    """

    @lists_settings(HookSettings)
    def __init__(
        self,
        compressor: str | Compressor,
        *,
        restore: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        given = {"compressor": compressor, **settings}
        checked = from_keywords(HookSettings, given, verb="TransformersCompression")
        self._compression = Compression(checked, restore=restore)
        self._checkpoint = checkpoint

    @property
    def state(self) -> CompressorState | None:
        """The hook's state in this process; None before, and where nothing is compressed."""
        return self._compression.state

    def __repr__(self) -> str:
        return f"TransformersCompression({self._compression.described})"

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Register the hook, and restore the memories of a training that goes on.

        Raises:
            ValueError: The model has another communication hook, or memories cannot be restored.
            TypeError: The model is not trained by DistributedDataParallel.
        """
        model, scaler = kwargs["model"], getattr(kwargs["optimizer"], "scaler", None)
        trainer = self._trainer()
        wrapped = trainer.model_wrapped if trainer is not None else model
        self._compression.begin(wrapped, scaler=scaler)
        if state.global_step or self._checkpoint:
            self._compression.load(lambda: self._find(args, state, model))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write this worker's memories into the checkpoint that the Trainer has just written."""
        if self.state is None or args.save_only_model:
            return
        trainer = self._trainer()
        trial = getattr(trainer, "_trial", None)
        folder = trainer._get_output_dir(trial) if trainer is not None else args.output_dir
        weights = weights_digest(kwargs["model"])
        write_memories(_checkpoint_of(folder, state), self.state.state_dict(), weights)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Print what was saved."""
        self._compression.end()

    def _find(self, args: TrainingArguments, state: TrainerState, model: Any) -> list[Saved]:
        """The memories of the checkpoint from which the training goes on; [] if it has none."""
        worker, workers = self._compression.place
        if self._checkpoint is not None:
            saved = read_memories(self._checkpoint, worker, workers)
            if not saved:
                raise ValueError(f"{file_of(self._checkpoint, worker)} is missing")
            return saved
        given = getattr(args, "resume_from_checkpoint", None)
        folders = [Path(given)] if isinstance(given, str) and Path(given).is_dir() else []
        for folder in (*folders, _checkpoint_of(args.output_dir, state)):
            saved = read_memories(folder, worker, workers, weights_digest(model))
            if saved:
                return saved
        return []

    def _trainer(self) -> Any:
        """The Trainer that calls; a callback is only passed the model inside the wrapper."""
        # type() and not isinstance(): objects that pretend to be others may not survive it
        trainers = (one for one in gc.get_objects() if issubclass(type(one), Trainer))
        for trainer in trainers:
            handler = getattr(trainer, "callback_handler", None)  # none while it is being made
            if handler is not None and self in handler.callbacks:
                return trainer
        return None


def _checkpoint_of(folder: str | None, state: TrainerState) -> Path:
    return Path(folder or ".", f"checkpoint-{state.global_step}")
