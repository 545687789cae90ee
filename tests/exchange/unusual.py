"""Unusual parameters, and workers that drift apart, fail or die."""

import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.compressors import AllReduce, Compressor, Contract, Rng, Step, compressor
from gradstats.ddp_hooks import CompressorState, compress_hook
from gradstats.exchange import drive, messaging
from gradstats.exchange.collectives import Group
from gradstats.payloads import messages
from gradstats.payloads.base import Dense
from tests.exchange.nets import Bucket, outcome


class Unusual(nn.Module):
    """One parameter that is not row-major and real, or has nothing in it."""

    def __init__(self, kind):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        shape = (60, 40)
        odd = torch.randn(shape, generator=generator)
        if kind == "complex":
            odd = torch.randn(shape, dtype=torch.complex64, generator=generator)
        if kind == "complex, column-major":
            odd = torch.randn(shape[::-1], dtype=torch.complex64, generator=generator).t()
        if kind == "column-major":
            odd = odd.t().contiguous().t()
        if kind == "channels last":
            odd = odd.view(6, 10, 8, 5).contiguous(memory_format=torch.channels_last)
        if kind == "strided":
            odd = torch.randn(60, 80, generator=generator)[:, ::2]
        if kind == "empty":
            odd = torch.zeros(0, 40)
        self.odd = nn.Parameter(odd)
        self.plain = nn.Parameter(torch.randn(7, generator=generator))

    def forward(self, direction):
        along = (self.odd * direction).sum()
        return (along.abs() if along.is_complex() else along) + self.plain.sum() * len(direction)


LAYOUTS = ["none", "topk(1.0)", "powersgd(rank=4)", "svd(rank=4)", "qsgd(bits=8)"]


LAYOUTS += ["ef(topk(1.0))", "ef21(topk(1.0))", "velocity(topk(1.0), momentum=0.0)"]


KINDS = ["complex", "complex, column-major", "column-major", "channels last", "strided", "empty"]


def direction_of(worker, odd):
    """A gradient of rank 2, another one on each worker."""
    generator = torch.Generator().manual_seed(77 + worker)
    rows = len(odd) or 1
    left = torch.randn(rows, 2, generator=generator)
    right = torch.randn(2, odd[0].numel() if odd.numel() else 40, generator=generator)
    matrix = left @ right
    return matrix.view(odd.shape) if odd.numel() else matrix


def unusual_parameters(worker, workers):
    """The gradient that each method leaves of unusual parameters, and the exact mean."""
    found = {}
    for kind in KINDS:
        for cap in (25, 0.0001):
            exact = DistributedDataParallel(Unusual(kind), bucket_cap_mb=cap)
            exact(direction_of(worker, exact.module.odd.detach())).backward()
            for spec in LAYOUTS:
                model = DistributedDataParallel(Unusual(kind), bucket_cap_mb=cap)
                state = CompressorState(None, spec, min_numel=8, check_every=1)
                model.register_comm_hook(state, compress_hook)
                for _ in range(4):
                    model.zero_grad()
                    model(direction_of(worker, model.module.odd.detach())).backward()
                grads = [p.grad.clone() for p in model.parameters()]
                found[kind, cap, spec] = (grads, [p.grad.clone() for p in exact.parameters()])
    return found


class Uncovered(Bucket):
    """A bucket that has more than its parameters."""

    def buffer(self):
        return torch.cat([super().buffer(), torch.zeros(2)])


def not_covered(worker, workers):
    state = CompressorState(None, "topk(0.5)")
    return outcome(lambda: state.reduce(Uncovered((4, 3))))


def drifting(worker, workers):
    """A worker whose update differs in one element, in the first step and in a later one."""
    found = []
    for at, every, by in ((0, 100, 1e-7), (4, 4, 1e-7), (4, 0, 1e-7), (3, 0, float("nan"))):
        state = CompressorState(None, Drifting(at, by), min_numel=8, check_every=every)
        texts, bucket = [], Bucket((8, 8), (5,))
        for _ in range(6):
            bucket.buffer().fill_(1.0)
            texts.append(outcome(lambda s=state, b=bucket: s.reduce(b)))
            if texts[-1] != "nothing":
                break
        found.append(texts)
    return found


class Drifting(Compressor):
    """Gives the last worker another update in one step."""

    name = "drifting"
    contract = Contract("all_reduce")

    def __init__(self, at, by):
        self.at, self.by = at, by

    @property
    def spec(self):
        return self.name

    def encode(self, grad, state, rng=None):
        return Dense(grad.reshape(-1).clone()), state

    def exchange(self, grad, state, rng=None):
        mean = yield AllReduce(grad, "mean")
        if rng.step == self.at and rng.workers > 1 and rng.worker == rng.workers - 1:
            mean.view(-1)[5] += self.by
        return Step(mean, Dense(grad.reshape(-1).clone()), state)


class FailingAt(Compressor):
    """Fails on the last worker in step 2, while it encodes: by an error, or as it is stopped."""

    name = "failing-at"
    contract = Contract("all_gather")

    def __init__(self, error):
        self.error = error

    @property
    def spec(self):
        return self.name

    def encode(self, grad, state, rng=None):
        return compressor("topk(0.5)").encode(grad, None)

    def exchange(self, grad, state, rng=None):
        if rng.step == 2 and rng.worker == rng.workers - 1:
            raise self.error("out of luck")
        return (yield from compressor("topk(0.5)").exchange(grad, None))


def failing_in_the_hook(worker, workers):
    """What each worker is told; the group would wait for many minutes."""
    found = {}
    for error in (ArithmeticError, SystemExit, KeyboardInterrupt):
        state = CompressorState(None, FailingAt(error), min_numel=8)
        texts, bucket = [], Bucket((8, 8), (5,))
        for _ in range(4):
            texts.append(outcome(lambda s=state, b=bucket: s.reduce(b)))
            if texts[-1] != "nothing":
                break
        found[error.__name__] = texts
    return found


def damaged_on_the_way(worker, workers):
    """What each worker is told where a bit of a message to the last one flips in bucket 2."""
    arrived, found = messaging.read, {}

    def flipped(room, head, seed):
        room[-messages.CHECK - 1] ^= 1  # the last byte before the checksum
        return arrived(room, head, seed)

    for spec in ("ef(topk(0.5))", "twoshot(mxfp8)"):
        state, texts = CompressorState(None, spec, min_numel=8), []
        bucket = Bucket((32, 32), last=False)
        for each in range(4):
            bucket.place = each
            bucket.buffer().copy_(torch.arange(1024.0) + each)
            messaging.read = flipped if (each, worker) == (2, workers - 1) else arrived
            texts.append(outcome(lambda s=state, b=bucket: s.reduce(b)))
            if texts[-1] != "nothing":
                break
        messaging.read = arrived
        found[spec] = (texts, float(bucket.buffer().double().sum()))
    return found


def damaged_outside_the_hook(worker, workers):
    """What each worker is told by `drive`, whatever the damage does to a decoder."""
    arrived, texts = messaging.read, {}
    grad = torch.randn(600, generator=torch.Generator().manual_seed(worker))
    for spec in ("mxfp8", "topk(0.1) | packed", "nvfp4", "lossless"):
        ends = () if spec == "lossless" else (-messages.CHECK - 1, -1)  # which one is longer
        for byte in (0, 6, 60, *ends):
            member, rng = compressor(spec), Rng(worker=worker, workers=workers)

            def flipped(room, head, seed, byte=byte):
                room, head = room.clone(), bytearray(head)
                room[byte] ^= 0x55
                if 0 <= byte < len(head):
                    head[byte] ^= 0x55
                return arrived(room, bytes(head), seed)

            messaging.read = flipped if worker == workers - 1 else arrived
            exchange = member.exchange(grad, member.init(grad), rng)
            texts[spec, byte] = outcome(lambda e=exchange: drive(e, Group()))
            messaging.read = arrived
    return texts


def dying(worker, workers, spec, moment):
    """The last worker dies in step 2: what the others are told."""
    state = CompressorState(None, spec, min_numel=8)
    bucket = Bucket((8, 8), (5,))
    for step in range(4):
        if step == 2 and worker == workers - 1:
            if moment == "before":
                os._exit(0)
            Group._gather = lambda *_: os._exit(0)  # the second shot
        text = outcome(lambda: state.reduce(bucket))
        if text != "nothing":
            return text
    return "nothing"
