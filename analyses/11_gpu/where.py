"""What a check knows of the machine, and how it says that it can't be made there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Check = tuple[str, Callable[[], dict[str, Any]]]
Checks = Iterator[Check]


class LeftOut(Exception):
    """A check that can't be made on this machine; the message says why."""


@dataclass(frozen=True)
class Where:
    """Where the checks run, how large they are, and until when.

    Attributes:
        device: CUDA, or the CPU for a dry run.
        quick: small sizes, few steps.
        until: `time.monotonic()` at which this part has to end.
    """

    device: torch.device
    quick: bool
    until: float

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        """What is left for this part."""
        return self.until - time.monotonic()

    def finish(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def needs_gpu(self) -> None:
        """Raise LeftOut on the CPU."""
        if not self.on_gpu:
            raise LeftOut("needs a CUDA device")
