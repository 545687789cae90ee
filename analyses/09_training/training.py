"""One worker's training of a small ResNet on CIFAR-10 with a compressor as communication hook."""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from gradstats.ddp_hooks import CompressorState, compress_hook

ARCHIVE = "cifar10-jpeg.zip"
WIDTHS = (16, 32, 64)
CHECKED = 25  # steps after which the workers compare their weights


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, padded with zeros where it widens."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.padding = width // before, width - before
        self.conv1 = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, before, h, w]` to `[n, width, h / stride, w / stride]`."""
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding)
        )
        return functional.relu(hidden + shortcut)


class ResNet8(nn.Module):
    """The smallest of He et al.'s networks for CIFAR-10: a block a stage, 75,290 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise((16, *WIDTHS))))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 3, 32, 32]`."""
        hidden = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.fc(hidden.mean(dim=(2, 3)))


def pictures(folder: Path, limit: int) -> tuple[Tensor, Tensor, str]:
    """Normalised pictures `[n, 3, 32, 32]`, their classes `[n]`, and where they are from."""
    path = folder / ARCHIVE
    if not path.exists():
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (limit,), generator=rng)
        centres = torch.randn(10, 3, 32, 32, generator=rng)
        noise = torch.randn(limit, 3, 32, 32, generator=rng)
        return centres[labels] * 0.3 + noise, labels, "noise around ten pictures, no real data"
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "train/" in name and name[-4:] == ".jpg"]
        chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:limit]]
        from PIL import Image

        decoded = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]
    kinds = sorted({Path(name).parent.name for name in names})
    labels = torch.tensor([kinds.index(Path(name).parent.name) for name in chosen])
    images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = images.mean(dim=(0, 2, 3), keepdim=True), images.std(dim=(0, 2, 3))
    return (images - mean) / deviation[:, None, None], labels, f"CIFAR-10, {limit:,} pictures"


class Training:
    """One worker's share of a training; every worker makes one at the same place.

    Args:
        spec: of the compressor; "" for DistributedDataParallel without a hook.
        data: pictures and classes to train on.
        steps: of the whole training, for the schedule.
        batch: pictures of a step, of all workers together.
        seed: of the weights and of the batches.
    """

    def __init__(
        self, spec: str, data: tuple[Tensor, Tensor], steps: int, batch: int, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.data, self.batch, self.seed = data, batch, seed
        self.model = DistributedDataParallel(ResNet8())
        names = self.model.named_parameters()
        self.state = (
            CompressorState(None, spec, by="parameter", named_parameters=names) if spec else None
        )
        if self.state:
            self.model.register_comm_hook(self.state, compress_hook)
        momentum = 0.0 if spec.startswith("velocity") else 0.9  # which that memory has itself
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-4
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.1, total_steps=steps, pct_start=0.15, cycle_momentum=False
        )
        self.step = 0

    def run(self, until: int) -> list[dict[str, Any]]:
        """Train up to a step; a row a step, the loss being the mean over the workers."""
        rows = []
        while self.step < until:
            start = time.perf_counter()
            loss = self._one_step()
            seconds = time.perf_counter() - start
            dist.all_reduce(loss)
            row = {"step": self.step, "loss": float(loss) / dist.get_world_size()}
            rows.append(row | {"seconds": seconds} | self._sent())
            self.step += 1
            if self.step % CHECKED == 0:
                self.check()
        return rows

    def _one_step(self) -> Tensor:
        images, labels = self.data
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        share = self.batch // dist.get_world_size()
        rows = torch.randint(len(images), (self.batch,), generator=rng)
        rows = rows[dist.get_rank() * share :][:share]
        x = images[rows]
        dx, dy, mirror = torch.randint(9, (3,), generator=rng).tolist()
        x = functional.pad(x, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
        x = x.flip(3) if mirror % 2 else x
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x), labels[rows])
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _sent(self) -> dict[str, float]:
        """What the hook has moved and spent so far."""
        if not self.state:
            return {}
        seconds, traffic = self.state.seconds, self.state.traffic
        return {
            "nbytes": traffic.nbytes,
            "wire": traffic.wire,
            "khat_over_k": self.state.khat_over_k,
            "encode": seconds.encode,
            "communicate": seconds.communicate,
            "decode": seconds.decode,
        }

    def check(self) -> str:
        """A digest of the weights, after all workers found theirs to be the same.

        Raises:
            AssertionError: they are not.
        """
        own = hashlib.sha256()
        for parameter in self.model.parameters():
            own.update(parameter.detach().numpy().tobytes())
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, own.hexdigest())
        assert len(set(told)) == 1, f"weights differ at step {self.step}"
        return own.hexdigest()

    def save(self, folder: Path) -> None:
        """Write this worker's checkpoint."""
        saved = {
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "compressor": self.state.state_dict() if self.state else None,
        }
        torch.save(saved, folder / f"worker{dist.get_rank()}.pt")

    def load(self, folder: Path) -> None:
        """Go on from this worker's checkpoint."""
        saved = torch.load(folder / f"worker{dist.get_rank()}.pt", weights_only=True)
        self.model.module.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step = saved["step"]
        if self.state:
            self.state.load_state_dict(saved["compressor"])

    @torch.no_grad()
    def accuracy(self, data: tuple[Tensor, Tensor]) -> float:
        """Of pictures that were not trained on, with this worker's running statistics."""
        self.model.eval()
        images, labels = data
        found = torch.cat([self.model.module(part).argmax(1) for part in images.split(500)])
        self.model.train()
        return float((found == labels).float().mean())


def join(rank: int, workers: int, meeting: str) -> None:
    """Meet the other workers, each with a thread of its own."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
