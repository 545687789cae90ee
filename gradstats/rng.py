"""Counter-based randomness: the same numbers on every device, the global generator untouched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradstats.kernels.forms import in_numba, on_host
from gradstats.kernels.philox import LOW, philox

FEISTEL_ROUNDS = 8
BLIND_ROUNDS = 12  # after which an index is still outside in one draw of 4096


@dataclass(frozen=True)
class Stream:
    """Random numbers under one 64-bit key; asking twice gives the same numbers.

    Attributes:
        key: two 32-bit words.
    """

    key: tuple[int, int]

    def uniform(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Float64 `[n]` in [0, 1), with 32 random bits each."""
        words = philox(self.key, torch.arange(-(-n // 4), device=device))
        # divided as integers, they would become float32, and those near 2^32 become 1
        return torch.stack(words, dim=1).reshape(-1)[:n].to(torch.float64) / 2.0**32

    def integers(self, n: int, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Int64 `[n]` in [0, high), with replacement."""
        return (self.uniform(n, device) * high).to(torch.int64)

    def subset(self, k: int, numel: int, device: torch.device | str = "cpu") -> Tensor:
        """Sorted int64 `[k]`: a random k-subset of range(numel), in time O(k).

        The images of 0 … k-1 under a keyed permutation: a Feistel network on the next power of 2,
        walked until it lands below numel.
        """
        bits = max(2, (numel - 1).bit_length())
        index = torch.arange(k, device=device)
        if in_numba(index):
            from gradstats.kernels.permuting_cpu import images

            return torch.from_numpy(images(k, numel, bits, self._round_keys)).sort().values
        index = self._permute(index, bits)
        if numel < 1 << bits:
            index = self._walked(index, numel, bits)
        return index.sort().values

    def _walked(self, index: Tensor, numel: int, bits: int) -> Tensor:
        """The indices, those from numel on permuted until they are below."""
        if on_host(index):
            while (outside := (index >= numel).nonzero().squeeze(1)).numel():
                index[outside] = self._permute(index[outside], bits)
            return index
        # half of them or more arrive in every round: the host looks when surely none is left
        rounds = len(index).bit_length() + BLIND_ROUNDS
        while True:
            for _ in range(rounds):
                index = torch.where(index < numel, index, self._permute(index, bits))
            if not bool((index >= numel).any()):
                return index

    def _permute(self, index: Tensor, bits: int) -> Tensor:
        # the halves differ by a bit where bits is odd, and change places in every round
        low, high = bits // 2, bits - bits // 2
        left, right = index >> low, index & ((1 << low) - 1)
        for key in self._round_keys:
            left, right = right, left ^ (_mix((right + key) & LOW) & ((1 << high) - 1))
            low, high = high, low
        return (left << low) | right

    @cached_property
    def _round_keys(self) -> list[int]:
        pairs = zip(philox(self.key, LOW - 1), philox(self.key, LOW), strict=True)
        return [word for pair in pairs for word in pair][:FEISTEL_ROUNDS]


def _mix(word: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on 32-bit words."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & LOW
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & LOW
    return word ^ (word >> 16)


@dataclass(frozen=True)
class Rng:
    """The randomness of one encoding, keyed by where it happens.

    Attributes:
        seed: of the run.
        step: optimizer step.
        parameter: name of the parameter, "" for the whole model.
        worker: data-parallel rank.
        workers: how many there are; no random number depends on it.
    """

    seed: int = 0
    step: int = 0
    parameter: str = ""
    worker: int = 0
    workers: int = 1

    @property
    def shared(self) -> Stream:
        """The stream that all workers have in common."""
        return self._stream("shared")

    @property
    def own(self) -> Stream:
        """The stream of this worker alone."""
        return self._stream(f"own {self.worker}")

    def _stream(self, which: str) -> Stream:
        text = f"{self.seed} {self.step} {which} {self.parameter}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return Stream((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")))
