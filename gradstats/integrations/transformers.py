"""Capture inside transformers' Trainer."""

import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradstats.recording import capture


class TransformersCallback(TrainerCallback):
    """Record the gradients of a `Trainer`, from the first step to the end of training.

    A row's step is the Trainer's global step. The loss stands on the rows when the Trainer logs it
    at every step (``logging_steps=1``). A training that goes on from a checkpoint adds a segment.

    Args:
        path: The store to write.
        **settings: As in `gradstats.capture`.

    Example:
        Trainer(..., callbacks=[TransformersCallback("run.zarr")])
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        self.path = path
        self.settings = settings
        self.capture: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Attach."""
        settings = {"start_step": state.global_step, **self.settings}
        if state.global_step:
            settings["if_exists"] = "resume"
        self.capture = capture(kwargs["model"], kwargs["optimizer"], self.path, **settings)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach the loss, where it is that of one step."""
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
        if self.capture is not None:
            self.capture.close()
