"""A callback that compresses what the workers of a Lightning `Trainer` exchange."""

from typing import Any

import lightning.pytorch as pl

from gradstats.compressors import Compressor
from gradstats.ddp_hooks import CompressorState
from gradstats.exchange.hook_settings import HookSettings
from gradstats.integrations.compression import Compression, Saved, refuse_hook
from gradstats.settings import from_keywords, lists_settings

KEY = "gradstats.LightningCompression"  # in checkpoints, whatever the class is called later


class LightningCompression(pl.Callback):
    """Compress gradients in every fit of a `Trainer` with the strategy "ddp" or one of its kind.

    The callback registers `gradstats.ddp_hooks.compress_hook` when the fit begins, on CPUs as well
    as on GPUs. (`DDPStrategy(ddp_comm_hook=...)` does nothing on CPUs.) With one process there is
    nothing to compress, and a line is printed. Other strategies are refused.

    Memories are a part of Lightning's checkpoints: at saving, the states of all workers are sent
    to the process that writes. `fit(ckpt_path=...)` gives each worker its own back; with another
    number of workers what they had not sent is added up. A fit that goes on in the same `Trainer`
    keeps its memories.

    Args:
        compressor: A spec such as "ef(topk(0.01))", or an instance.
        restore: Whether memories are loaded from a checkpoint; False begins with empty ones.
        **settings: As in `gradstats.ddp_hooks.CompressorState`: by, min_numel, min_dims,
            start_step, seed and check_every.

    Raises:
        ValueError: A setting is out of range.

    Example:
        Trainer(strategy="ddp", devices=2, callbacks=[LightningCompression("ef(topk(0.01))")])
    """

    @lists_settings(HookSettings)
    def __init__(
        self, compressor: str | Compressor, *, restore: bool = True, **settings: Any
    ) -> None:
        given = {"compressor": compressor, **settings}
        checked = from_keywords(HookSettings, given, verb="LightningCompression")
        self._compression = Compression(checked, restore=restore)
        self._loaded: list[Saved] | None = None  # from a checkpoint, since the last fit began

    @property
    def state(self) -> CompressorState | None:
        """The hook's state in this process; None before a fit, and where nothing is compressed."""
        return self._compression.state

    @property
    def state_key(self) -> str:
        """The name of the memories in a checkpoint."""
        return KEY

    def __repr__(self) -> str:
        return f"LightningCompression({self._compression.described})"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Register the hook, and restore the memories of a fit that goes on.

        Raises:
            ValueError: The model has another communication hook, or memories cannot be restored.
            TypeError: The strategy is not DistributedDataParallel.
        """
        hook = getattr(trainer.strategy, "_ddp_comm_hook", None)
        if hook is not None:
            refuse_hook(f"the ddp_comm_hook {getattr(hook, '__qualname__', hook)} of the strategy")
        before, self._loaded = self._loaded, None
        if before is None and self.state is not None and trainer.global_step:
            before = self._compression.kept()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._compression.begin(trainer.model or pl_module, scaler=scaler)
        if trainer.global_step:
            self._compression.load(lambda: before or [])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what was saved."""
        self._compression.end()

    def state_dict(self) -> dict[str, Any]:
        """The states of all workers, in the process that writes checkpoints: a collective."""
        workers = self._compression.gathered()
        return {"workers": workers} if workers else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the memories of a checkpoint until the fit begins."""
        self._loaded = state_dict.get("workers")
