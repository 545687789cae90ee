"""The trainings that reference captures are made of: each records a stretch of its steps."""

from __future__ import annotations

import lzma
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import gradstats
from gradstats.cli import demo

sys.path.insert(0, str(Path(__file__).parents[1] / "analyses/03_resnet20"))
from train import ResNet20, augmented, pictures

WORDS = "wikitext2/{split}.txt.xz"
VOCABULARY = 4_000
INNER = 30  # steps of the inner optimizer in a round of DiLoCo
LENGTH = 35  # words through which a gradient goes back
NO_WORDS = (
    "cannot train: {path} is not there. Set GRADSTATS_DATA or --data to a folder with {path.name} "
    "in wikitext2/: that split of WikiText-2, one paragraph a line, compressed by xz "
    "(github.com/reichenbch/Word-Level-Language-Model)"
)


@dataclass(frozen=True)
class Plan:
    """How long a training is and what of it is recorded.

    Attributes:
        steps: optimizer steps in all.
        first: the first recorded step; all from there on are tracked.
        full: start and stop of the steps that get a whole row.
        track: elements tracked.
        batch: pictures or sequences a step, on each worker.
    """

    steps: int
    first: int
    full: tuple[int, int]
    track: int
    batch: int


@dataclass(frozen=True)
class Task:
    """What a step of a training computes.

    Attributes:
        model: whose gradients are recorded.
        optimizer: of the model.
        loss: the loss of a new batch.
        warm_up: steps over which the learning rate rises from a tenth; 0 for none.
        limit: norm to which gradients are clipped, if they are.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    warm_up: int = 0
    limit: float | None = None


def record(task: Task, plan: Plan, path: Path, *, seed: int, at: Any = "auto") -> float:
    """Train and record; returns the mean loss of the last tenth of the steps."""
    rises = torch.optim.lr_scheduler.LambdaLR(task.optimizer, partial(_share, task.warm_up))
    losses: list[float] = []
    capture: Any = None
    for step in range(plan.steps):
        if step == plan.first:
            capture = gradstats.capture(
                task.model,
                task.optimizer,
                path,
                full=gradstats.window(*plan.full),
                track=plan.track,
                at=at,
                start_step=step,
                seed=seed,
            )
        loss = task.loss()
        loss.backward()
        if task.limit:
            nn.utils.clip_grad_norm_(task.model.parameters(), task.limit)
        task.optimizer.step()
        task.optimizer.zero_grad()
        rises.step()
        if capture:
            capture.log(loss=loss)
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    capture.close()
    return fmean(losses[-max(1, plan.steps // 10) :])


def _share(warm_up: int, step: int) -> float:
    """Of the learning rate, at a step."""
    return min(1.0, 0.1 + 0.9 * step / warm_up) if warm_up else 1.0


def resnet20(plan: Plan, path: Path, data: Path, seed: int) -> dict[str, float]:
    """ResNet-20 on CIFAR-10, in one process."""
    task = _resnet20(plan, data, seed, rank=0, world=1)
    return {"training loss": record(task, plan, path, seed=seed)}


def _resnet20(plan: Plan, data: Path, seed: int, *, rank: int, world: int) -> Task:
    torch.manual_seed(seed)
    images, labels = pictures(data, limit=min(50_000, plan.steps * plan.batch * world))
    rng = torch.Generator().manual_seed(seed + rank)
    net = ResNet20()
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (plan.batch,), generator=rng)
        return functional.cross_entropy(model(augmented(images[rows], rng)), labels[rows])

    return Task(model, optimizer, loss, warm_up=100)


def resnet20_pair(plan: Plan, path: Path, data: Path, seed: int) -> dict[str, float]:
    """ResNet-20 on CIFAR-10 on two workers (DistributedDataParallel over gloo)."""
    losses = path.parent / "losses"
    losses.mkdir()
    arguments = (plan, path, data, seed, losses)
    torch.multiprocessing.spawn(_worker, arguments, nprocs=2)  # type: ignore[no-untyped-call]
    return {"training loss": fmean(float(file.read_text()) for file in losses.iterdir())}


def _worker(rank: int, plan: Plan, path: Path, data: Path, seed: int, losses: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{losses.parent.resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    task = _resnet20(plan, data, seed, rank=rank, world=2)
    loss = record(task, plan, path, seed=seed, at=["local", "reduced"])
    (losses / str(rank)).write_text(str(loss))
    dist.barrier()
    dist.destroy_process_group()


def diloco(plan: Plan, path: Path, data: Path, seed: int) -> dict[str, float]:
    """DiLoCo on two workers with a small model over bytes; needs no data."""
    losses = path.parent / "losses"
    losses.mkdir()
    arguments = (plan, path, seed, losses)
    torch.multiprocessing.spawn(_diloco, arguments, nprocs=2)  # type: ignore[no-untyped-call]
    return {"training loss": fmean(float(file.read_text()) for file in losses.iterdir())}


def _diloco(rank: int, plan: Plan, path: Path, seed: int, losses: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{losses.parent.resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(seed)
    worker = DilocoWorker(demo.ByteModel(width=32, layers=2, context=32), rank, plan.batch)
    capture: Any = None
    for number in range(plan.steps):
        if number == plan.first:
            capture = gradstats.capture(
                worker.model,
                worker.outer,
                path,
                full=gradstats.window(*plan.full),
                track=plan.track,
                at="outer",
                start_step=number,
                seed=seed,
            )
        loss = worker.take_inner_steps(INNER)
        pseudo = worker.pseudo_gradient()
        if capture:
            capture.record(pseudo, inner_steps=INNER)
            capture.log(loss=loss)
        for grad in pseudo.values():
            dist.all_reduce(grad)
        worker.take_outer_step({name: grad / 2 for name, grad in pseudo.items()})
    capture.close()
    (losses / str(rank)).write_text(str(loss))
    dist.barrier()
    dist.destroy_process_group()


class DilocoWorker:
    """A worker of DiLoCo: some inner steps of its own, then one outer step that all take alike.

    Args:
        model: The model, equal on all workers.
        rank: Of the worker; its batches are its own.
        batch: Sequences in a batch.
        inner: Makes the inner optimizer of parameters; AdamW with learning rate 0.002 if None.
    """

    def __init__(
        self,
        model: demo.ByteModel,
        rank: int,
        batch: int,
        inner: Callable[[Any], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.model, self._batch = model, batch
        self.inner = (inner or partial(torch.optim.AdamW, lr=2e-3))(model.parameters())
        self.outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        self._text = demo.corpus()
        self._rng = torch.Generator().manual_seed(100 + rank)
        self._start = self._parameters()

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def loss(self) -> Tensor:
        """The loss of the next batch, in nats per byte."""
        last, context = len(self._text) - self.model.context, self.model.context
        starts = torch.randint(last, (self._batch,), generator=self._rng)
        rows = [self._text[start : start + context + 1] for start in starts]
        loss: Tensor = self.model(torch.stack(rows).long())
        return loss

    def take_inner_steps(self, steps: int) -> float:
        """Train by oneself; returns the mean loss."""
        losses = []
        for _ in range(steps):
            self.inner.zero_grad()
            loss = self.loss()
            loss.backward()
            self.inner.step()
            losses.append(loss.item())
        return fmean(losses)

    def pseudo_gradient(self) -> dict[str, Tensor]:
        """By name, parameters at the start of the round minus parameters now."""
        named = self.model.named_parameters()
        return {name: self._start[name] - p.detach() for name, p in named}

    @torch.no_grad()
    def take_outer_step(self, mean: dict[str, Tensor]) -> None:
        """Go back to the start of the round and give the averaged gradient to the optimizer."""
        for name, p in self.model.named_parameters():
            p.copy_(self._start[name])
            p.grad = mean[name]
        self.outer.step()
        self._start = self._parameters()


class WordModel(nn.Module):
    """A language model over words: two LSTM layers, input and output embeddings tied."""

    def __init__(self, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2)
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, text: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits `[length, batch, vocabulary]` of the words after `[length, batch]`; the state."""
        hidden, state = self.lstm(self.embedding(text), state)
        return self.head(hidden), state


def words(data: Path, split: str) -> list[str]:
    """The words of a split of WikiText-2, lines ended by <eos>."""
    path = data / WORDS.format(split=split)
    if not path.exists():
        raise SystemExit(NO_WORDS.format(path=path))
    text = lzma.open(path, "rt", encoding="utf-8-sig").read()
    return text.replace("\n", " <eos> ").split()


def columns(text: list[str], known: dict[str, int], batch: int) -> Tensor:
    """Word numbers `[length, batch]`: the text cut into `batch` columns; others are <unk>."""
    numbers = torch.tensor([known.get(word, known["<unk>"]) for word in text])
    length = len(numbers) // batch
    return numbers[: length * batch].view(batch, length).t().contiguous()


def lstm(plan: Plan, path: Path, data: Path, seed: int) -> dict[str, float]:
    """The word model on WikiText-2's test split, validated on its validation split."""
    torch.manual_seed(seed)
    text = words(data, "test")
    common = [word for word, _ in Counter([*text, "<unk>"]).most_common(VOCABULARY)]
    known = {word: place for place, word in enumerate(common)}
    model = WordModel(len(known))
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    numbers = columns(text, known, plan.batch)
    epochs = chain.from_iterable(_passages(numbers, model) for _ in count())
    task = Task(model, optimizer, lambda: next(epochs), warm_up=50, limit=0.25)
    training = record(task, plan, path, seed=seed)
    held_out = columns(words(data, "valid"), known, plan.batch)
    return {"training loss": training, "validation loss": _validated(model, held_out)}


def _passages(text: Tensor, model: WordModel) -> Iterator[Tensor]:
    """The losses of one passage after another; the state goes on from each to the next."""
    state = None
    for start in range(0, len(text) - LENGTH, LENGTH):
        logits, state = model(text[start : start + LENGTH], state)
        state = tuple(part.detach() for part in state)
        target = text[start + 1 : start + LENGTH + 1]
        yield functional.cross_entropy(logits.flatten(0, 1), target.flatten())


@torch.no_grad()
def _validated(model: WordModel, text: Tensor) -> float:
    model.eval()
    return fmean(loss.item() for loss in _passages(text, model))


def bytes_model(plan: Plan, path: Path, data: Path, seed: int) -> dict[str, float]:
    """The demo's model on the Python standard library's source; needs no data."""
    torch.manual_seed(seed)
    text, model = demo.corpus(), demo.ByteModel()
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss() -> Tensor:
        starts = torch.randint(len(text) - model.context, (plan.batch,), generator=rng)
        rows = [text[start : start + model.context + 1] for start in starts]
        return model(torch.stack(rows).long())

    return {"training loss": record(Task(model, optimizer, loss), plan, path, seed=seed)}
