"""A checksum in threads is zlib's."""

import zlib

import numpy as np
import pytest
import torch

from gradstats.kernels.threads import CHUNK
from gradstats.payloads.checking import crc32


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("nbytes", [0, 1, 9, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
@pytest.mark.parametrize("start", [0, 2, 0xFFFFFFFF])
def test_it_is_that_of_zlib(threads, nbytes, start):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert crc32(data.tobytes(), start) == zlib.crc32(data.tobytes(), start)
        assert crc32(data.data, start) == zlib.crc32(data, start)
    finally:
        torch.set_num_threads(before)
