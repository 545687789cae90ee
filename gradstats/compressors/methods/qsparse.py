from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gradstats.compressors.contracts import Bound, Contract
from gradstats.compressors.methods.qsgd import QSGD
from gradstats.compressors.methods.topk import TopK
from gradstats.compressors.short_forms import Stateless
from gradstats.compressors.wrappers.pipe import Pipe
from gradstats.payloads.base import Payload
from gradstats.payloads.quantized import Coded
from gradstats.payloads.sparse import Sparse
from gradstats.rng import Rng


@dataclass(frozen=True)
class QSparse(Stateless):
    r"""The k largest, quantised without bias and shortened by 1/(1 + ω): a contraction again.

    .. math:: E\|x - C(x)\|^2 \le \Big(1 - \frac{k}{d (1 + \omega)}\Big) \|x\|^2

    Args:
        ratio: k/d, in (0, 1].
        bits: of a value, see `QSGD`.

    References:
        Basu et al., "Qsparse-local-SGD", NeurIPS 2019.
    """

    ratio: float
    bits: int = 4
    name = "qsparse"

    def __post_init__(self) -> None:
        super().__post_init__()
        QSGD(self.bits)  # which says what is wrong with them

    @property
    def _pipe(self) -> Pipe:
        return Pipe((TopK(self.ratio), QSGD(self.bits)))

    @property
    def contract(self) -> Contract:
        """A contraction in expectation."""
        inner = self._pipe.contract

        def delta(payload: Sparse) -> float:
            return payload.count / max(payload.numel, 1) / (1 + self._omega(payload.kept))

        return replace(
            inner, delta=Bound("k/d(1+ω)", delta), in_expectation=True, wants_feedback=True
        )

    def _omega(self, kept: Payload) -> float:
        omega = QSGD(self.bits).contract.omega
        assert omega is not None
        return omega(kept)

    def message(self, flat: Tensor, rng: Rng | None = None) -> Sparse:
        """Select, quantise, shorten."""
        payload, _ = self._pipe.encode(flat, None, rng)
        assert isinstance(payload, Sparse)
        assert isinstance(payload.kept, Coded)
        kept = replace(payload.kept, unit=1 / (1 + self._omega(payload.kept)))
        return payload.with_kept(kept)
