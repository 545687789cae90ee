"""The keyed permutation behind random subsets in numba, see `gradstats.rng.Stream.subset`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstats.kernels.compiling import jit


def images(k: int, numel: int, bits: int, keys: list[int]) -> NDArray[np.int64]:
    """Permute 0 … k-1 on [0, 2^bits), each again until it is below `numel`: int64 `[k]`."""
    results = np.empty(k, np.uint64)
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    permute(results, np.uint64(numel), low, high, np.array(keys, np.uint64))
    return results.view(np.int64)


@jit
def permute(
    results: NDArray[np.uint64], numel: Any, low: Any, high: Any, keys: NDArray[np.uint64]
) -> None:
    """Run the rounds of the Feistel network, an even number of them."""
    one = np.uint64(1)
    masks = (one << high) - one, (one << low) - one
    for i in range(results.size):
        index = np.uint64(i)
        while True:
            left, right = index >> low, index & masks[1]
            for pair in range(0, keys.size, 2):
                # the halves differ by a bit where bits is odd, and change places in every round
                left, right = right, left ^ (mix(right + keys[pair]) & masks[0])
                left, right = right, left ^ (mix(right + keys[pair + 1]) & masks[1])
            index = (left << low) | right
            if index < numel:
                break
        results[i] = index


@jit
def mix(word: Any) -> Any:
    """Apply the finaliser of MurmurHash3 to the last 32 bits."""
    last = np.uint64(0xFFFFFFFF)
    word &= last
    word = ((word ^ (word >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & last
    word = ((word ^ (word >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & last
    return word ^ (word >> np.uint64(16))
