"""Payloads that claim much for few bytes, and what reading and decoding anything costs."""

import resource
import time
from functools import cache

import numpy as np
import torch

from gradstats.compressors import PayloadError, Rng, compressor, from_bytes
from gradstats.payloads import codebooks as alphabets
from gradstats.payloads import symbol_codes as coders
from gradstats.payloads.entropy import compress_bytes
from gradstats.payloads.index_codes import CODES
from gradstats.payloads.wire import blob, raw, real, seal, varint

DENSE, CONSTANT, SPARSE, MASKED, BUNDLE, CODED, PLANES, LOW_RANK, SKETCH = range(9)
PACKED, SERIAL, SERIAL_MODEL, ZERO_RUNS, ANS, MODEL = range(6)
FLOAT32, UINT8, ROTATED = 0, 4, 1
MOST = (1 << 31) - 1
ONE = np.float32(1).tobytes()
SPECS = (
    "none",
    "bf16",
    "topk(0.1)",
    "topk(0.1) | raw",
    "topk(0.1) | packed",
    "topk(0.1) | bitmap",
    "topk(0.1) | golomb",
    "topk(0.1) | delta",
    "randomk(0.1)",
    "topk(0.1) | qsgd(bits=2) | golomb",
    "qsgd(bits=2)",
    "qsgd(bits=3, bucket=100)",
    "qsgd(bits=4) | ans",
    "sign",
    "3lc",
    "fp8",
    "mxfp4",
    "mxfp8",
    "nvfp4",
    "eden(1)",
    "eden(3)",
    "eden(8)",
    "co3(fp4)",
    "co3(fp8)",
    "onebit",
    "lossless",
    "powersgd",
    "svd(3)",
    "thc",
    "qsgd-shared(bucket=100)",
    "count-sketch",
)


def honest(spec, numel):
    """The bytes of a heavy-tailed gradient; a matrix where its size allows."""
    flat = torch.randn(numel, generator=torch.Generator().manual_seed(numel)) ** 3
    grad = flat.view(-1, 8) if numel % 8 == 0 else flat
    member = compressor(spec)
    payload, _ = member.encode(grad, member.init(grad), Rng(seed=numel))
    return payload.to_bytes()


def body(*sections):
    """Numbers as varints, bytes as they are."""
    return b"".join(varint(each) if isinstance(each, int) else each for each in sections)


def long(data):
    return b"".join(map(raw, blob(data)))


def coded(alphabet, numel, coder, *rest, flags=0, bucket=None, scales=ONE):
    """A `Coded` of one bucket."""
    code = alphabet if isinstance(alphabet, tuple) else alphabet.code
    key = (7, 7) if flags else ()
    head = body(CODED, numel, *code, bucket or max(numel, 1), real(1.0), flags, *key, FLOAT32)
    return head + scales + body(coder, *rest)


def skewed(levels):
    """Frequencies under which a symbol 0 takes next to nothing."""
    counts = np.zeros(levels, "<u2")
    counts[0] = (1 << 16) - levels
    return counts.tobytes()


@cache
def hostile():
    """Bodies by name. Some are no payloads at all: they must be refused for little, too."""
    widest, model = alphabets.Uniform(32767), real(0.5) + real(1.0)
    zeros = compress_bytes(bytes(1 << 28))
    return {
        "a table of 256 levels for no element": coded(alphabets.Gauss(8), 0, PACKED, scales=b""),
        "a table of 256 levels for one element": coded(alphabets.Gauss(8), 1, PACKED, b"\1"),
        "the issue's 14 bytes": body(CODED, 1, *alphabets.Gauss(8).code, 1, b"\0" * 5),
        "a lattice that takes long": coded(alphabets.Lattice(7, 255), 1, PACKED, b"\1"),
        "65,535 levels for no element": coded(widest, 0, PACKED, scales=b""),
        "65,535 levels for one element": coded(widest, 1, PACKED, b"\1\0"),
        "a model of 65,535 levels": coded(widest, 1, MODEL, model, long(b"\1\0\0\0")),
        "frequencies of 65,535 levels": coded(widest, 1, ANS, skewed(65535), long(b"\1\0\0\0")),
        "a model of 239 levels": coded(alphabets.CO3_FP8_143, 1, MODEL, model, long(b"")),
        "65,536 own levels for no element": coded((0, 65536, 0), 0, PACKED, scales=b""),
        "2^31 symbols of a word": coded(
            alphabets.Uniform(1), MOST, ANS, skewed(3), long(b"\1\0\0\0")
        ),
        "2^31 modelled symbols of a word": coded(
            alphabets.CO3_FP4, MOST, MODEL, model, long(b"\1\0\0\0")
        ),
        "2^31 symbols of a state": coded(
            alphabets.Uniform(1), MOST, ANS, skewed(3), long(b"\1\0\0\1\0")
        ),
        "2^31 symbols of 8,192 states": coded(
            alphabets.Uniform(1), MOST, ANS, skewed(3), long(b"\1" + bytes(4 * 16_383))
        ),
        "2^31 symbols of a serial word": coded(
            alphabets.Uniform(1), MOST, SERIAL, skewed(3), long(b"\1\0\0\0")
        ),
        "2^31 modelled symbols of a serial word": coded(
            alphabets.CO3_FP4, MOST, SERIAL_MODEL, model, long(b"\1\0\0\0")
        ),
        "60,000 symbols of no word, 400 times": body(BUNDLE, 400)
        + coded(alphabets.Uniform(1), 60_000, ANS, skewed(3), long(b"")) * 400,
        "a rotation wider than its gradient": coded(
            alphabets.Sign(), 1, ANS, skewed(2), long(b"\1\0\0\0"), flags=ROTATED, bucket=65536
        ),
        "a bucket wider than its gradient": coded(alphabets.Sign(), 1, PACKED, b"\1", bucket=MOST),
        "2^26 zeros from zstd": body(PLANES, FLOAT32, 1 << 26, long(zeros)),
        "2^31 elements of an empty zstd frame": body(PLANES, FLOAT32, MOST, long(b"")),
        "one value 2^31 times": body(CONSTANT, FLOAT32, MOST, ONE),
        "2^31 places drawn from a key": body(
            MASKED, MOST, 7, 7, MOST, CONSTANT, FLOAT32, MOST, ONE
        ),
        "a matrix of rank 0": body(LOW_RANK, FLOAT32, 46340, 46340, 0),
        "2^31 estimates from 64 sums": body(SKETCH, FLOAT32, MOST, 7, 7, 0, 64, 1, ONE * 64),
        **{f"10^5 bytes 00 of {code} indices": _indices(code, b"\0") for code in CODES},
        **{f"10^5 bytes ff of {code} indices": _indices(code, b"\xff") for code in CODES},
        "10^5 bytes of runs of zeros": coded(
            alphabets.Uniform(1), 7_000_000, ZERO_RUNS, long(b"\xff" * 100_000)
        ),
        "10^5 bytes of packed symbols": coded(alphabets.Sign(), 800_000, PACKED, bytes(100_000)),
        "10^5 bytes of ANS": coded(
            alphabets.Gauss(8), MOST, ANS, skewed(256), long(b"\1" * 100_000)
        ),
        "33,333 empty payloads": body(BUNDLE, 33_333) + body(DENSE, FLOAT32, 0) * 33_333,
        "50,000 bundles of nothing": body(BUNDLE, 50_000) + body(BUNDLE, 0) * 50_000,
    }


def _indices(code, byte):
    """All of a million elements, by indices that are 100,000 equal bytes."""
    kept = body(CONSTANT, FLOAT32, 800_000, ONE)
    return body(SPARSE, 1_000_000, CODES.index(code), 800_000, long(byte * 100_000)) + kept


def signed(sections):
    return seal([sections])


def forget():
    """Empty what reading keeps, so that it costs what it costs at first."""
    alphabets.Alphabet.levels.cache_clear()
    coders._frequencies.cache_clear()


def read(data, max_numel=1 << 31):
    """A payload, or None where the bytes are refused."""
    try:
        return from_bytes(data, max_numel=max_numel)
    except PayloadError:
        return None


def processor_seconds(work, times=3):
    """The least of a few: what else the machine does is not counted, caches that it spoils are."""
    took = []
    for _ in range(times):
        forget()
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


class Allowance:
    """Processor time that a payload may take, in units of honest ones of 4,096 elements.

    Ten of the dearest honest one, and one more for every 64 bytes, or every 1,024 elements.
    """

    def __init__(self):
        payloads = [honest(spec, 4096) for spec in SPECS]
        self.reading = max(processor_seconds(lambda d=data: from_bytes(d)) for data in payloads)
        self.decoding = max(processor_seconds(from_bytes(data).decode) for data in payloads)

    def of_reading(self, nbytes):
        return self.reading * (10 + nbytes / 64)

    def of_decoding(self, numel):
        return self.decoding * (10 + numel / 1024)


def growth_by_name(payloads, work):
    """By how many bytes the peak of this process's memory rises with each payload."""
    growth = {}
    for name, data in payloads.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work(data)
        growth[name] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return growth
