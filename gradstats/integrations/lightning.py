"""A callback that records the gradients of a Lightning `Trainer`."""

import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from gradstats.integrations.segments import Segments, printing_errors
from gradstats.recording.settings import CaptureSettings
from gradstats.settings import lists_settings


class LightningCallback(pl.Callback):
    """Record the gradients of a `Trainer`, from the first step to the end of the fit.

    The step of a row counts optimizer calls. Its loss is the loss of the batch after which the
    optimizer stepped. A fit that goes on from a checkpoint with this callback in it adds a
    segment, and so does every further fit with the same callback. A fit of a new `Trainer` counts
    its steps from the beginning again; one that goes on in the same `Trainer` counts on.

    Nothing is raised into the trainer: if attaching fails (for example because `path` exists), the
    reason is printed and the fit is not recorded.

    Args:
        path: The store to write.
        optimizer: Index of the recorded optimizer, if the module has several.
        **settings: As in `gradstats.capture`.

    Example:
        Trainer(callbacks=[LightningCallback("run.zarr")])
    """

    @lists_settings(CaptureSettings)
    def __init__(
        self, path: str | os.PathLike[str], *, optimizer: int = 0, **settings: Any
    ) -> None:
        self.optimizer = optimizer
        self._segments = Segments(path, settings)
        self._loaded = False  # from a checkpoint, since the last fit began
        self._step: int | None = None  # to go on from
        self._seen = 0  # the next step's number, when the last batch ended

    @property
    def capture(self) -> Any:
        """The handle of the last recording; None before the first, and after attaching failed."""
        return self._segments.capture

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a recording, or print why that fails."""
        going_on = self._loaded or trainer.global_step > 0
        step, self._loaded = self._next_step() if going_on else None, False
        self._segments.begin(
            lambda: (trainer.model or pl_module, trainer.optimizers[self.optimizer]),
            start_step=step,
            resume=step is not None,
        )
        self._seen = self.capture.step if self.capture is not None else 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the loss, if the optimizer stepped in this batch."""
        if self.capture is None or self.capture.step == self._seen:
            return
        self._seen = self.capture.step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        with printing_errors("cannot log the loss"):
            if loss is not None:  # Lightning has divided it by the number of batches
                self.capture.log(loss=loss * trainer.accumulate_grad_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the recording."""
        self._segments.end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the recording."""
        self._segments.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the step from which a resumed fit goes on."""
        return {"step": self._next_step()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's step."""
        self._step, self._loaded = state_dict.get("step"), True
        self._segments.end()

    def _next_step(self) -> int | None:
        if self.capture is not None and not self._loaded:
            self._step = self.capture.step
        return self._step
