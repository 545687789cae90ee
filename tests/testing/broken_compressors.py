"""Compressors that break laws: each repeats a mistake of released code, or one a step away."""

import random
from dataclasses import dataclass

import torch

from gradstats.compressors import Bound, Compressor, Contract, Step
from gradstats.compressors.contracts import KEPT_SHARE
from gradstats.payloads.base import Dense
from gradstats.payloads.sparse import Masked, Sparse

BIASED = Contract("all_gather", delta=KEPT_SHARE)


@dataclass(frozen=True)
class Broken(Compressor):
    name = "broken"
    contract = BIASED

    def encode(self, grad, state, rng=None):
        flat = grad.detach().reshape(-1)
        return self.choose(flat, rng), state

    def choose(self, flat, rng):
        k = min(10, flat.numel())
        return Sparse.at(flat, flat.abs().topk(k).indices)


class SignedThreshold(Broken):
    """Thresholds the signed values, so that only positive ones can be kept."""

    def choose(self, flat, rng):
        return Sparse.at(flat, flat.topk(min(10, flat.numel())).indices)


class PositionalTrim(Broken):
    """Selects too many, then keeps the first k by position."""

    def choose(self, flat, rng):
        chosen = flat.abs().topk(min(15, flat.numel())).indices.sort().values
        return Sparse.at(flat, chosen[:10])


class WithReplacement(Broken):
    """Draws indices with repetitions."""

    contract = Contract("all_gather", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        if flat.numel() == 0:
            return Sparse.at(flat, torch.zeros(0, dtype=torch.int64))
        return Sparse.at(flat, rng.shared.integers(max(1, flat.numel() // 3), flat.numel()))


class TooRarely(Broken):
    """Never takes the last tenth of the elements, and sends their share elsewhere."""

    contract = Contract("all_reduce", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        n = flat.numel()
        inner = max(n - n // 10, min(n, 1))
        stream = rng.shared
        return Sparse.at(flat, stream.subset(min(n, 1 + n // 5), inner) if n else torch.arange(0))


class Reseeds(Broken):
    """Seeds the global generator, which makes dropout equal on all workers."""

    def choose(self, flat, rng):
        torch.manual_seed(5)  # the mistake under test
        return super().choose(flat, rng)


class DrawsGlobally(Broken):
    """Draws from the standard library's generator."""

    def choose(self, flat, rng):
        random.random()
        return super().choose(flat, rng)


class Alias(Broken):
    """The payload is a view of the gradient."""

    contract = Contract("all_reduce", delta=Bound("1", lambda payload: 1.0))

    def choose(self, flat, rng):
        return Dense(flat)


class WritesGradient(Broken):
    """Normalises the gradient in place."""

    def choose(self, flat, rng):
        flat.mul_(0.5)
        return super().choose(flat, rng)


class InvertedSigns(Broken):
    """Scaled sign with an inverted mask: the decoded vector points the other way."""

    contract = Contract("all_reduce", delta=Bound("0", lambda payload: 0.0))

    def choose(self, flat, rng):
        scale = flat.abs().mean() if flat.numel() else flat.new_zeros(())
        return Dense(torch.where(flat > 0, -scale, scale))


class SharedState(Broken):
    """Keeps its residual in itself, under no name, so that all tensors share it."""

    def init(self, grad):
        object.__setattr__(self, "residual", 0.0)

    def encode(self, grad, state, rng=None):
        compensated = grad.detach().reshape(-1) + self.residual
        payload = self.choose(compensated, rng)
        object.__setattr__(self, "residual", compensated - payload.decode())
        return payload, state


@dataclass(frozen=True, eq=False)
class LocalContext(Sparse):
    """Decodes with a scale that never travels."""

    scale: float = 1.0

    @property
    def values(self):
        return super().values * self.scale


class DecodesLocally(Broken):
    contract = Contract("all_gather")

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return LocalContext(Dense(payload.values / 2), payload.numel, payload.indices, scale=2.0)


@dataclass(frozen=True, eq=False)
class Boast(Sparse):
    """Counts a byte a value although it ships four."""

    @property
    def nbytes(self):
        return super().nbytes - 3 * self.count


class UnderstatesBytes(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Boast(payload.kept, payload.numel, payload.indices)


@dataclass(frozen=True, eq=False)
class Overwrites(Sparse):
    """Writes its values instead of adding them."""

    def add_to(self, out, weight=1.0):
        out[self.indices] = self.values.to(out.dtype)


class IgnoresWeight(Broken):
    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return Overwrites(payload.kept, payload.numel, payload.indices)


class SumsWorkers(Broken):
    """The update is the sum over workers, not the mean."""

    def exchange(self, grad, state, rng=None):
        step = yield from super().exchange(grad, state, rng)
        return Step(step.update * 2, step.sent, step.state)


class OwnMasks(Broken):
    """All-reduces the values of masks that differ from worker to worker."""

    contract = Contract("all_reduce", delta=KEPT_SHARE, in_expectation=True, random=True)

    def choose(self, flat, rng):
        k = min(flat.numel(), 1 + flat.numel() // 10)
        return Masked(Dense(flat[rng.own.subset(k, flat.numel())]), flat.numel(), rng.own)


class HidesNaN(Broken):
    """Replaces NaN and inf by numbers."""

    def choose(self, flat, rng):
        return super().choose(flat.nan_to_num(0.0, 1.0, -1.0), rng)


class FailsOnEmpty(Broken):
    """Takes ten elements of nothing."""

    def choose(self, flat, rng):
        return Sparse.at(flat, flat.abs().topk(10).indices)


class LosesSmall(Broken):
    """Sends values of another tensor than it counts: a residual that cannot conserve."""

    def choose(self, flat, rng):
        payload = super().choose(flat, rng)
        return payload.with_values(payload.values * 1.5)
