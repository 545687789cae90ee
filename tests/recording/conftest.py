import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from gradstats.store import GradientStore, Stream
from tests.processes import Nursery


class Training:
    """A small regression that remembers the gradients each optimizer step was given."""

    def __init__(
        self, model: nn.Module | None = None, optimizer: type[torch.optim.Optimizer] | None = None
    ) -> None:
        self.rng = torch.Generator().manual_seed(7)
        self.model = model or self.fresh_model()
        self.optimizer = (optimizer or torch.optim.SGD)(self.model.parameters(), lr=0.05)
        self.seen: list[dict[str, Tensor | None]] = []
        self.losses: list[float] = []

    def fresh_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3, generator=self.rng)
        return model

    def backward(self) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        batch = torch.randn(6, 12, generator=self.rng).to(dtype)
        loss = self.model(batch).square().mean()
        loss.backward()
        return loss

    def remember(self) -> None:
        self.seen.append(
            {
                name: None if p.grad is None else p.grad.detach().to_dense().clone()
                for name, p in self.model.named_parameters()
            }
        )

    def step(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.backward()
        self.remember()
        self.optimizer.step()
        self.losses.append(loss.item())
        return loss

    def flat(self, index: int) -> Tensor:
        """The gradient of a step as a full row holds it."""
        named = self.seen[index]
        return torch.cat(
            [
                (torch.zeros_like(p) if named[name] is None else named[name]).reshape(-1)
                for name, p in self.model.named_parameters()
            ]
        ).detach()


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture
def make_training() -> Callable[..., Training]:
    return Training


@pytest.fixture
def read() -> Callable[..., Stream]:
    """Open a stream of a finished recording."""

    def opened(path: object, kind: str = "full") -> Stream:
        return GradientStore.open(path).stream(kind=kind)

    return opened


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every append takes 50 ms longer."""
    append = GradientStore.append_rows

    def slow(*args: object, **kwargs: object) -> None:
        time.sleep(0.05)
        append(*args, **kwargs)

    monkeypatch.setattr(GradientStore, "append_rows", slow)


@pytest.fixture
def process() -> Iterator[Callable[..., object]]:
    """Starts processes fast; kills what is left of them."""
    nursery = Nursery()
    yield nursery.start
    nursery.end()
