"""A callback that records the gradients of a transformers `Trainer`."""

import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradstats.integrations.segments import Segments, printing_errors
from gradstats.recording.settings import CaptureSettings
from gradstats.settings import lists_settings


class TransformersCallback(TrainerCallback):
    """Record the gradients of a `Trainer`, from the first step to the end of training.

    The step of a row is the Trainer's global step. Rows have a loss when the Trainer logs it at
    every step (`logging_steps=1`). A training that goes on from a checkpoint adds a segment, and
    so does every further one with the same callback: a second `train()`, a trial of a
    hyperparameter search, a start with a smaller batch (`auto_find_batch_size`).

    Nothing is raised into the Trainer: if attaching fails (for example because `path` exists), the
    reason is printed and the training is not recorded.

    Args:
        path: The store to write.
        **settings: As in `gradstats.capture`.

    Example:
        Trainer(..., callbacks=[TransformersCallback("run.zarr")])
    """

    @lists_settings(CaptureSettings)
    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        self._segments = Segments(path, settings)

    @property
    def capture(self) -> Any:
        """The handle of the last recording; None before the first, and after attaching failed."""
        return self._segments.capture

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin a recording, or print why that fails."""
        chosen = self._segments.settings.get("start_step")
        self._segments.begin(
            lambda: (kwargs["model"], kwargs["optimizer"]),
            start_step=state.global_step if chosen is None else chosen,
            resume=bool(state.global_step),
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the loss, if it is the loss of one step."""
        with printing_errors("cannot log the loss"):
            if self.capture is not None and args.logging_steps == 1 and "loss" in (logs or {}):
                self.capture.log(loss=(logs or {})["loss"])

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the recording."""
        self._segments.end()
