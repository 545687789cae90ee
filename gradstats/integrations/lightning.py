"""Capture inside Lightning's Trainer."""

import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from gradstats.recording import capture


class LightningCallback(pl.Callback):
    """Record the gradients of a `Trainer`, from the first step to the end of the fit.

    A row's step counts calls of the optimizer. The loss is that of the batch the optimizer stepped
    after. A fit that goes on from a checkpoint with this callback in it adds a segment.

    Args:
        path: The store to write.
        optimizer: Which of the module's optimizers, where it has several.
        **settings: As in `gradstats.capture`.

    Example:
        Trainer(callbacks=[LightningCallback("run.zarr")])
    """

    def __init__(
        self, path: str | os.PathLike[str], *, optimizer: int = 0, **settings: Any
    ) -> None:
        self.path = path
        self.optimizer = optimizer
        self.settings = settings
        self.capture: Any = None
        self._step: int | None = None
        self._seen = 0  # the next step's number, when the last batch ended

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach."""
        settings = dict(self.settings)
        if self._step is not None:
            settings |= {"start_step": self._step, "if_exists": "resume"}
        optimizer = trainer.optimizers[self.optimizer]
        self.capture = capture(trainer.model or pl_module, optimizer, self.path, **settings)
        self._seen = self.capture.step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Attach the loss, if the optimizer stepped in this batch."""
        if self.capture is None or self.capture.step == self._seen:
            return
        self._seen = self.capture.step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:  # Lightning has divided it by the number of batches it accumulates
            self.capture.log(loss=loss * trainer.accumulate_grad_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the recording."""
        if self.capture is not None:
            self.capture.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the recording."""
        if self.capture is not None:
            self.capture.close()

    def state_dict(self) -> dict[str, Any]:
        """The step to go on from."""
        return {"step": self.capture.step if self.capture is not None else self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's step."""
        self._step = state_dict["step"]
