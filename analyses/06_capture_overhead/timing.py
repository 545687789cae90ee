"""What all measurements share: trainings to measure, a clock inside the optimizer, medians."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradstats.cli.demo import ByteModel

sys.path.insert(0, str(Path(__file__).parents[1] / "03_resnet20"))
from train import ARCHIVE, ResNet20, augmented, pictures


@dataclass(frozen=True)
class Training:
    """A model, what trains it, and the loss of its next batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]

    def backward(self) -> Tensor:
        """Forward and backward of one step."""
        loss = self.loss()
        loss.backward()
        return loss

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the model."""
        return list(self.model.parameters())

    @property
    def elements(self) -> int:
        """Of a gradient."""
        return sum(parameter.numel() for parameter in self.parameters)


def cifar(data: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10's pictures and classes; noise of their shape where there is no data."""
    if data is not None and (data / ARCHIVE).exists():
        return pictures(data, limit=count)
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=rng), torch.randint(10, (count,), generator=rng)


def resnet20(batch: int, data: Path | None = None, device: str = "cpu") -> Training:
    """ResNet-20 (0.27 million elements), SGD with momentum."""
    torch.manual_seed(0)
    images, labels = (part.to(device) for part in cifar(data, 16 * batch))
    rng = torch.Generator().manual_seed(0)
    model = ResNet20().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=rng).to(device)
        return functional.cross_entropy(model(augmented(images[rows], rng)), labels[rows])

    return Training(model, optimizer, loss)


def transformer(width: int, device: str = "cpu") -> Training:
    """The demo's model, 25.3 million elements at width 720, on random bytes, one row a step."""
    torch.manual_seed(0)
    model = ByteModel(width=width).to(device)
    text = torch.randint(256, (64, 1, model.context + 1)).to(device)
    steps = iter(range(1_000_000))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return Training(model, optimizer, lambda: model(text[next(steps) % 64]))


def small(layers: int) -> Training:
    """Linear layers of 20 elements, two parameters each."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    batch = torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return Training(model, optimizer, lambda: model(batch).square().mean())


def timed_hooks(
    optimizer: torch.optim.Optimizer, attach: Callable[[], Any]
) -> tuple[Any, list[float]]:
    """Attach a recording between two hooks of our own; what passes between them is its work.

    Torch calls the hooks of a step in the order in which they were registered.

    Returns:
        What `attach` returned, and the seconds of each step from now on.
    """
    seconds: list[float] = []
    begun = [0.0]

    def start(*_: Any) -> None:
        begun[0] = time.perf_counter()

    def stop(*_: Any) -> None:
        seconds.append(time.perf_counter() - begun[0])

    optimizer.register_step_pre_hook(start)
    recording = attach()
    optimizer.register_step_pre_hook(stop)
    return recording, seconds


def clocked(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def flat_copy(parameters: list[nn.Parameter], buffer: Tensor) -> None:
    """The gradient, one parameter after another, into a buffer that is there already."""
    torch.cat([parameter.grad.reshape(-1) for parameter in parameters], out=buffer)


def standard_error(values: list[float]) -> float:
    """Of the median, from the median deviation, as of a normal sample."""
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return 1.2533 * spread / len(values) ** 0.5
