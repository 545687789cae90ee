"""Compressors whose contract promises what they do not keep."""

from dataclasses import dataclass

import torch

from gradstats.compressors import Bound, Contract
from gradstats.compressors.contracts import KEPT_SHARE, SPARSE_BITS
from gradstats.payloads.base import Constant, Dense
from gradstats.payloads.sparse import Masked, Sparse
from tests.testing.broken_compressors import Broken


class RoundsTheWrongWay(Broken):
    """Stochastic rounding that goes up with 1 - p in place of p."""

    contract = Contract("all_gather", unbiased=True, random=True)

    def choose(self, flat, rng):
        scale = flat.abs().max() if flat.numel() else flat.new_ones(())
        share = (flat.abs() / scale).nan_to_num(1.0)
        up = rng.own.uniform(flat.numel()) < 1 - share
        return Dense(torch.where(up, scale, 0 * scale) * flat.sign())


class ShrinksALittle(Broken):
    """Unbiased but for a factor of 0.97."""

    contract = Contract("all_gather", unbiased=True, random=True)

    def choose(self, flat, rng):
        noise = (rng.own.uniform(flat.numel()) - 0.5).to(flat.dtype) * flat.abs()
        return Dense(0.97 * flat + noise)


class ForgetsTheScale(Broken):
    """Random-k that is called unbiased, but not divided by its probability."""

    contract = Contract("all_reduce", unbiased=True, random=True)

    def choose(self, flat, rng):
        stream = rng.shared
        places = stream.subset(min(flat.numel(), 1 + flat.numel() // 2), flat.numel())
        return Masked(Dense(flat[places]), flat.numel(), stream)


class UnderstatesVariance(Broken):
    """Says ω = 0.1 where it is 1."""

    contract = Contract(
        "all_gather", omega=Bound("0.1", lambda payload: 0.1), unbiased=True, random=True
    )

    def choose(self, flat, rng):
        up = rng.own.uniform(flat.numel()) < 0.5
        return Dense(torch.where(up, 2 * flat, 0 * flat))


class WideSigns(Broken):
    """Signs that are said to take a bit and travel as bytes and more."""

    contract = Contract("all_gather", bits=Bound("d", lambda payload: payload.numel))

    def choose(self, flat, rng):
        return Dense(flat.sign() * flat.abs().sum() / max(flat.numel(), 1))


class LongIndices(Broken):
    """64-bit indices where the formula counts a good code."""

    contract = Contract("all_gather", delta=KEPT_SHARE, bits=SPARSE_BITS)

    def choose(self, flat, rng):
        found = Sparse.at(flat, flat.abs().topk(min(flat.numel(), 1 + flat.numel() // 50)).indices)
        return Doubled(found.kept, found.numel, found.indices)


@dataclass(frozen=True, eq=False)
class Doubled(Sparse):
    """Ships its values twice."""

    def sections(self):
        yield from super().sections()
        yield bytes(4 * self.count)

    @property
    def inner_nbytes(self):
        return super().inner_nbytes + 4 * self.count


class ClampsToTheSignedMaximum(Broken):
    """A hard threshold of at most max(x): all of an all-negative gradient is zeroed out."""

    contract = Contract("all_gather", delta=KEPT_SHARE)

    def choose(self, flat, rng):
        if not flat.numel():
            return Sparse.at(flat, torch.zeros(0, dtype=torch.int64))
        limit = min(0.5, float(flat.max()))
        return Sparse.at(
            flat * (flat > -limit), (~(flat.abs() <= abs(limit))).nonzero().squeeze(1)
        )


class FloatIndices(Broken):
    """Indices that went through a float, which counts up to 256 only."""

    def choose(self, flat, rng):
        k = min(10, flat.numel())
        places = (
            flat.abs().topk(k).indices.to(torch.bfloat16).long().clamp(max=max(0, len(flat) - 1))
        )
        return Sparse.at(flat, places.unique())


class PadsWithGarbage(Broken):
    """Scaled sign whose mean counts elements that are not there."""

    contract = Contract("all_gather", delta=Bound("1/d", lambda payload: 1 / payload.numel))

    def choose(self, flat, rng):
        padded = torch.cat([flat, flat.new_full((flat.numel() + 1,), 1e4)])
        return Dense(flat.sign() * padded.abs().mean())


class ReadsUnseen(Broken):
    """Says that the host never waits, and asks whether all is finite."""

    contract = Contract("all_gather", host_reads=0)

    def choose(self, flat, rng):
        return Dense(flat * 1 if flat.isfinite().all() else flat.clone())


class CopiesATable(Broken):
    """Copies two numbers to the device in every step."""

    contract = Contract("all_gather", host_reads=0)

    def choose(self, flat, rng):
        return Dense(flat * torch.tensor([1.0], dtype=flat.dtype, device=flat.device))


class LeavesZerosOut(Broken):
    """Says that payloads are equally long, and sends one value where all are alike."""

    contract = Contract("all_gather", fixed_length=True)

    def choose(self, flat, rng):
        alike = flat.numel() and (flat == flat[0]).all()
        return Constant(flat[:1].clone(), flat.numel()) if alike else Dense(flat.clone())
