from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradstats.compressors.checks import check_whole
from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.short_forms import Stateless
from gradstats.payloads import entropy
from gradstats.payloads.planes import Planes
from gradstats.payloads.wire import raw
from gradstats.rng import Rng


@dataclass(frozen=True)
class Lossless(Stateless):
    """Every element exactly: bytes of equal significance lie together, and zstd compresses them.

    Signs and exponents of a gradient repeat, mantissas hardly do: about one byte in four is saved.

    Args:
        level: of zstd, 1 to 22.
    """

    level: int = 3
    name = "lossless"
    contract = Contract("all_gather", delta=Bound("1", lambda payload: 1.0), unbiased=True)

    def __post_init__(self) -> None:
        check_whole("level", self.level, 1, 22)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Planes:
        """Compress the bytes, plane by plane."""
        planes = entropy.byte_planes(raw(flat), flat.dtype.itemsize)
        data = entropy.compress_bytes(planes, self.level)
        return Planes(data, flat.numel(), flat.dtype, flat.device)
