"""Memories of a compressor in a checkpoint's folder: one file per worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradstats.exchange.buckets import digest_of
from gradstats.exchange.messaging import digest


def file_of(folder: str | os.PathLike[str], worker: int) -> Path:
    """The file of one worker."""
    return Path(folder, f"gradstats-rank{worker}.pt")


def write_memories(
    folder: str | os.PathLike[str], saved: Mapping[str, Any], weights: int = 0
) -> None:
    """Write the checkpoint of one worker; the file appears whole or not at all.

    Args:
        folder: The trainer's checkpoint.
        saved: The `state_dict()` of a `CompressorState`.
        weights: Digest of the model's weights; 0 if it was not computed.
    """
    file = file_of(folder, saved["worker"])
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save({"state": dict(saved), "weights": weights}, part)
    os.replace(part, file)


def read_memories(
    folder: str | os.PathLike[str], worker: int, workers: int, weights: int = 0
) -> list[Mapping[str, Any]]:
    """The checkpoints of all workers that wrote to a folder; [] if none did.

    If the number of workers is the same, only this worker's own is read, in place of all.

    Args:
        folder: The trainer's checkpoint.
        worker: Rank of this worker.
        workers: Number of workers.
        weights: Digest that the weights must have; 0 if it is not compared.

    Raises:
        ValueError: The file of a worker is missing, or belongs to other weights.
    """
    if not any(file_of(folder, each).exists() for each in {0, worker}):
        return []
    own = file_of(folder, worker)
    saved = _read(own if own.exists() else file_of(folder, 0), weights)
    before = int(saved["settings"]["workers"])
    if before == workers:
        return [saved if saved["worker"] == worker else _read(own, weights)] * workers
    return [_read(file_of(folder, each), weights) for each in range(before)]


def _read(file: Path, weights: int) -> Mapping[str, Any]:
    if not file.exists():
        raise ValueError(f"{file} is missing")
    content = torch.load(file, map_location="cpu", weights_only=True)
    if weights and content["weights"] != weights:
        raise ValueError(f"{file} belongs to other weights than those of the model")
    saved: Mapping[str, Any] = content["state"]
    return saved


def weights_digest(model: nn.Module) -> int:
    """A digest of the values of all parameters, by which memories find their weights."""
    parts = []
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        values = torch.view_as_real(values) if values.is_complex() else values
        parts.append((name, digest_of(values)))
    return digest(str(parts))
