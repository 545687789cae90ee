"""The checksum of payloads is zlib's, whichever library computes it."""

import sys
import zlib

import numpy as np
import pytest

from gradstats.payloads import checking


@pytest.mark.parametrize("nbytes", [0, 1, 9, 4096, (1 << 19) + 1, 5 * (1 << 19) + 3])
@pytest.mark.parametrize("start", [0, 2, 0xFFFFFFFF])
def test_it_is_that_of_zlib(nbytes, start):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    expected = zlib.crc32(data.tobytes(), start)
    assert checking.crc32(data.tobytes(), start) == expected
    assert checking.crc32(data.data, start) == expected


def test_it_is_there_without_zlib_ng(monkeypatch):
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    monkeypatch.delitem(sys.modules, "gradstats.payloads.checking")
    from gradstats.payloads.checking import crc32

    assert crc32 is zlib.crc32
