from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Contract
from gradstats.compressors.quantizing import coded_bits
from gradstats.compressors.short_forms import Stateless, needs_rng
from gradstats.kernels import rotating
from gradstats.payloads.codebooks import Gauss
from gradstats.payloads.quantized import Coded
from gradstats.payloads.symbol_codes import Packed
from gradstats.rng import Rng

BLOCK = 4096
LEAST_BLOCKS = 16  # so that padding costs at most a sixteenth


@dataclass(frozen=True)
class EDEN(Stateless):
    r"""Rotate at random, quantise the then nearly normal coordinates, scale so as to be unbiased.

    With R the randomised Hadamard transform of each block and Q the Lloyd-Max quantiser of the
    normal distribution,

    .. math:: \hat x = S R^{-1} Q(Rx), \quad S = \frac{\|x\|^2}{\langle Rx, Q(Rx)\rangle}
              \quad\text{or}\quad \frac{\langle Rx, Q(Rx)\rangle}{\|Q(Rx)\|^2},

    the second where the error of one vector counts and not that of a mean over workers. For a
    uniformly random rotation the first is unbiased and E‖x̂ - x‖² tends to D/(1 - D)‖x‖², the
    second tends to D‖x‖², with D the distortion of the quantiser: 0.363, 0.1175, 0.0345, 0.0095 at
    1 … 4 bits. The Hadamard transform is not uniform, so the contract promises neither. At 1 bit
    this is DRIVE. Rotating in blocks costs 32/4096 bits per element for the scales and keeps the
    transform in the cache.

    Args:
        bits: of a symbol, 1 to 8.
        unbiased: the first scale, or the second.

    References:
        Vargaftik et al., "DRIVE", NeurIPS 2021; "EDEN", ICML 2022.
    """

    bits: int = 2
    unbiased: bool = True
    name = "eden"

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 1, 8)

    @property
    def contract(self) -> Contract:
        """Bytes only."""
        bits = coded_bits("bits · B⌈d/B⌉ + 32⌈d/B⌉")
        return Contract(
            "all_gather",
            bits=bits,
            random=True,
            wants_feedback=not self.unbiased,
            host_reads=1,
        )

    def message(self, flat: Tensor, rng: Rng | None = None) -> Coded:
        """Rotate, quantise at the scale of the coordinates, then find the scale to send."""
        block, key = block_of(flat.numel()), needs_rng(self, rng).own.key
        alphabet = Gauss(self.bits)
        rotated = rotating.quantize(flat, block, key, alphabet.levels(flat.device))
        if self.unbiased:
            factor = rotated.values_sq / rotated.products
        else:
            factor = rotated.products / rotated.levels_sq
        scales = torch.where(rotated.scales == 0, 0, rotated.scales * factor).float()
        coder = Packed(rotated.packed)
        return Coded(coder, flat.numel(), alphabet, scales, block, rotated.unit, rotation=key)


def block_of(numel: int) -> int:
    """A power of two: 4096, or what is needed for 16 blocks."""
    share = -(-numel // LEAST_BLOCKS)
    return min(BLOCK, 1 << max(share - 1, 0).bit_length())
