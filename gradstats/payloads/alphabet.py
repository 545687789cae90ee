"""Alphabets: the levels that symbols stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Code = tuple[int, int, int]
TABLES = 64  # kept in memory: whoever sends payloads chooses how many there are


@dataclass(frozen=True)
class Alphabet(ABC):
    """A set of levels. Subclasses have up to two integers as fields, which determine it.

    Attributes:
        kind: the code of its class in the bytes.
    """

    kind: ClassVar[int]

    @property
    def code(self) -> Code:
        """Its kind and its integers."""
        first, second, *_ = (*astuple(self), 0, 0)
        return self.kind, first, second

    @property
    def largest(self) -> float:
        """The largest level."""
        return float(self.levels()[-1])

    @property
    @abstractmethod
    def size(self) -> int:
        """L, the number of levels, which are not built for it."""

    @lru_cache(TABLES)  # noqa: B019  (alphabets are small)
    def levels(self, device: torch.device | None = None) -> Tensor:
        """Float32 `[L]`, strictly rising; on a device it is copied there once, None: the host."""
        if device is None:
            return torch.from_numpy(self.exact_levels().astype(np.float32))
        return self.levels().to(device)

    @abstractmethod
    def exact_levels(self) -> Floats:
        """Float64 `[L]`, strictly rising."""


@cache
def codebooks() -> dict[str, NDArray[Any]]:
    """The levels that take long to find: constants of the format, made by data/codebooks.py.

    `gauss` holds the 2^(b-1) positive levels of every `Gauss(b)` one behind the other, b = 1 … 8;
    `lattice` the 2^b integers of every `Lattice(b, g)`, in the order of b and then of g.
    """
    with (files(__package__) / "codebooks.npz").open("rb") as file:
        return dict(np.load(file))


def _both_signs(magnitudes: Floats) -> Floats:
    return np.concatenate([-magnitudes[::-1], [0.0], magnitudes])


def _check(holds: bool, alphabet: Alphabet) -> None:
    if not holds:
        raise ValueError(f"alphabet must have its numbers in range, got {alphabet}")
