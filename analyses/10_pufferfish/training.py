"""One worker's training, dense, factorised or compressed, with the time of each part of a step."""

from __future__ import annotations

import io
import lzma
import math
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from models import RESNET18_KEEP, ResNet18, Words, numel
from torch import Tensor, nn
from torch.nn import functional

import gradstats
from gradstats.compressors import Rng, compressor
from gradstats.exchange import drive, fused
from gradstats.exchange.collectives import Group
from gradstats.lowrank import factorize, warm_start

ARCHIVE, WORDS = "cifar10-jpeg.zip", "wikitext2/{split}.txt.xz"
VOCABULARY, LENGTH = 4_000, 35


@dataclass(frozen=True)
class Method:
    """How gradients travel, and whether the model is factorised.

    Attributes:
        spec: of the compressor.
        switch: share of the steps at full rank, then factorised; 1: never, 0: from the start.
        rate: of the task's learning rate, by task.
        momentum: of the optimizer.
    """

    spec: str = "none"
    switch: float = 1.0
    rate: dict[str, float] = field(default_factory=dict)
    momentum: float = 0.9


METHODS = {
    "dense": Method(),
    "Pufferfish": Method(switch=0.25),
    "factorised from the start": Method(switch=0.0),
    "PowerSGD, rank 2": Method("ef(powersgd)"),
    "Signum": Method("signum", rate={"pictures": 0.01, "words": 3e-5}, momentum=0.0),
}


@dataclass
class Task:
    """A model, and how to train and to judge it.

    Attributes:
        name: "pictures" or "words".
        make: the model, at full rank.
        keep: how it is factorised.
        loss: of a model on this worker's batch of a step.
        judge: loss and accuracy on what is held out.
        rate: the highest learning rate.
        limit: norm to which gradients are clipped, 0 for none.
        slower: factor of the learning rate after a switch.
        source: where the data are from.
    """

    name: str
    make: Callable[[], nn.Module]
    keep: dict[str, Any]
    loss: Callable[[nn.Module, int], Tensor]
    judge: Callable[[nn.Module], tuple[float, float]]
    rate: float
    limit: float
    slower: float
    source: str


def pictures(folder: Path, *, width: int, batch: int, seen: int, held: int) -> Task:
    """A ResNet-18 of a given width on CIFAR-10, or on noise around ten pictures."""
    images, labels, source = _images(folder, seen + held)
    trained, known = images[held:], labels[held:]

    def loss(model: nn.Module, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(7_919 * step + dist.get_rank())
        rows = torch.randint(len(trained), (batch,), generator=rng)
        dx, dy, mirror = torch.randint(9, (3,), generator=rng).tolist()
        x = functional.pad(trained[rows], (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
        return functional.cross_entropy(model(x.flip(3) if mirror % 2 else x), known[rows])

    @torch.no_grad()
    def judge(model: nn.Module) -> tuple[float, float]:
        logits = torch.cat([model(part) for part in images[:held].split(250)])
        truth = labels[:held]
        right = (logits.argmax(1) == truth).float().mean()
        return float(functional.cross_entropy(logits, truth)), float(right)

    make = lambda: ResNet18(width)  # noqa: E731
    return Task("pictures", make, RESNET18_KEEP, loss, judge, 0.1, 0.0, 1.0, source)


def words(folder: Path, *, size: int, batch: int) -> Task:
    """Two LSTM layers on WikiText-2's test split, judged on its validation split; or on noise."""
    text, held, source = _texts(folder)
    length = len(text) // (batch * dist.get_world_size())
    start = dist.get_rank() * batch * length
    columns = text[start : start + batch * length].view(batch, length).t().contiguous()
    state: list[Any] = [None]

    def loss(model: nn.Module, step: int) -> Tensor:
        place = step % ((length - 1) // LENGTH) * LENGTH
        if place == 0:
            state[0] = None
        logits, after = model(columns[place : place + LENGTH], state[0])
        state[0] = tuple(part.detach() for part in after)
        target = columns[place + 1 : place + LENGTH + 1]
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    @torch.no_grad()
    def judge(model: nn.Module) -> tuple[float, float]:
        losses, right, carried = [], [], None
        for place in range(0, len(held) - LENGTH, LENGTH):
            logits, carried = model(held[place : place + LENGTH], carried)
            target = held[place + 1 : place + LENGTH + 1]
            losses.append(float(functional.cross_entropy(logits.flatten(0, 1), target.flatten())))
            right.append(float((logits.argmax(-1) == target).float().mean()))
        return float(np.mean(losses)), float(np.mean(right))

    make = lambda: Words(VOCABULARY, size, 0.2)  # noqa: E731
    return Task("words", make, {}, loss, judge, 10.0, 0.25, 0.5, source)


def _images(folder: Path, limit: int) -> tuple[Tensor, Tensor, str]:
    path = folder / ARCHIVE
    if not path.exists():
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (limit,), generator=rng)
        centres = torch.randn(10, 3, 32, 32, generator=rng)
        noise = torch.randn(limit, 3, 32, 32, generator=rng)
        return centres[labels] * 0.3 + noise, labels, "noise around ten pictures, no real data"
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "train/" in name and name[-4:] == ".jpg"]
        chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:limit]]
        decoded = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]
    kinds = sorted({Path(name).parent.name for name in names})
    labels = torch.tensor([kinds.index(Path(name).parent.name) for name in chosen])
    images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = images.mean(dim=(0, 2, 3), keepdim=True), images.std(dim=(0, 2, 3))
    return (images - mean) / deviation[:, None, None], labels, f"CIFAR-10, {limit:,} pictures"


def _texts(folder: Path) -> tuple[Tensor, Tensor, str]:
    """Word numbers to train on `[n]`, those held out in columns of 10, and where they are from."""
    if not (folder / WORDS.format(split="test")).exists():
        rng = torch.Generator().manual_seed(0)
        text = torch.randint(40, (20_000,), generator=rng).cumsum(0) % VOCABULARY
        return text, text[:2_000].view(10, -1).t().contiguous(), "a random walk, no real data"
    raw = [
        lzma.open(folder / WORDS.format(split=split), "rt", encoding="utf-8-sig").read()
        for split in ("test", "valid")
    ]
    texts = [each.replace("\n", " <eos> ").split() for each in raw]
    common = [word for word, _ in Counter([*texts[0], "<unk>"]).most_common(VOCABULARY)]
    known = {word: place for place, word in enumerate(common)}
    text, held = (torch.tensor([known.get(w, known["<unk>"]) for w in each]) for each in texts)
    held = held[: 40_000 // 10 * 10].view(10, -1).t().contiguous()
    return text, held, "WikiText-2, test split to train, validation split to judge"


class Training:
    """One worker's training by one method.

    Args:
        task: what is trained.
        method: how.
        steps: in all.
        path: where worker 0 captures gradients and weights; None for nowhere.
    """

    def __init__(self, task: Task, method: Method, steps: int, path: Path | None = None) -> None:
        torch.manual_seed(0)
        self.task, self.method, self.steps = task, method, steps
        self.model = task.make()
        self.full = numel(self.model)
        if method.switch == 0:
            self.model = factorize(self.model, **task.keep).model
        self.optimizer = self._optimizer()
        self.member, self.group = compressor(method.spec), Group()
        self.states: dict[str, Any] = {}
        self.spent = dict.fromkeys(("compute", "encode", "communicate", "decode", "other"), 0.0)
        self.capture: Any = None
        if path is not None and dist.get_rank() == 0:
            self.capture = gradstats.capture(
                self.model,
                self.optimizer,
                path,
                full=gradstats.every(max(1, steps // 8)),
                track=None,
                weights=True,
                quiet=True,
            )

    def _optimizer(self) -> torch.optim.Optimizer:
        decay = 1e-4 if self.task.name == "pictures" else 0.0
        momentum = self.method.momentum if self.task.name == "pictures" else 0.0
        return torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=momentum, weight_decay=decay
        )

    def step(self, number: int) -> float:
        """One step; the loss of this worker."""
        if number and number == round(self.method.switch * self.steps):
            found, self.optimizer = warm_start(self.model, self.optimizer, **self.task.keep)
            self.model, self.states = found.model, {}
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(number)
        start = time.perf_counter()
        loss = self.task.loss(self.model, number)
        loss.backward()
        computed = time.perf_counter()
        before = self.group.seconds.total
        self._exchange(number)
        exchanged = time.perf_counter()
        if self.task.limit and self.method.spec != "signum":
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.spent["compute"] += computed - start
        left = exchanged - computed - (self.group.seconds.total - before)
        self.spent["other"] += left + time.perf_counter() - exchanged
        for part in ("encode", "communicate", "decode"):
            self.spent[part] = getattr(self.group.seconds, part)
        return float(loss.detach())

    def _rate(self, step: int) -> float:
        """Up in a tenth of the steps, then down to 0 by a cosine."""
        share = step / self.steps
        shape = share / 0.1 if share < 0.1 else (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2
        highest = self.task.rate * self.method.rate.get(self.task.name, 1.0)
        slower = self.task.slower if share >= self.method.switch > 0 else 1.0
        return highest * slower * max(shape, 0.01)

    def _exchange(self, step: int) -> None:
        """One blocking exchange of all gradients, after the backward pass, as published."""
        parameters = dict(self.model.named_parameters())
        exchanges = []
        for name, parameter in parameters.items():
            grad = parameter.grad
            assert grad is not None
            state = self.states.get(name, self)
            state = self.member.init(grad) if state is self else state
            rng = Rng(0, step, name, self.group.rank, self.group.workers)
            exchanges.append(self.member.exchange(grad, state, rng))
        found = drive(fused(exchanges), self.group, check=False)
        for (name, parameter), done in zip(parameters.items(), found, strict=True):
            parameter.grad, self.states[name] = done.update, done.state

    def run(self, judged: int) -> list[dict[str, float]]:
        """The whole training, judged `judged` times, which takes no time of the rows'."""
        rows, losses = [], []
        for number in range(self.steps):
            losses.append(self.step(number))
            if self.capture:
                self.capture.log(loss=losses[-1])
            if (number + 1) % (self.steps // judged):
                continue
            self.model.eval()
            held_loss, accuracy = self.task.judge(self.model)
            self.model.train()
            rows.append(
                {
                    "step": number + 1,
                    "loss": float(np.mean(losses)),
                    "held_out_loss": held_loss,
                    "accuracy": accuracy,
                    "nbytes": self.group.traffic.nbytes,
                    "wire": self.group.traffic.wire,
                    "seconds": sum(self.spent.values()),
                }
            )
            losses = []
        if self.capture:
            self.capture.close()
        return rows


def join(rank: int, workers: int, meeting: str) -> None:
    """Meet the other workers, each with a thread of its own."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
