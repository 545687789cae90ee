"""How numba compiles the loops, and what makes it compile them anew.

`parallel=True` is not used: such kernels called from two threads can abort the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import numba


def sources(folder: Traversable) -> str:
    """A digest of all Python files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


KERNELS = sources(files("gradstats.kernels"))


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles a loop, and keeps the machine code beside its file.

    numba takes machine code from its cache while the loop's own file is as it was. A loop that
    calls one in another file would then go on with what that one was before, so that here the
    sources of all kernels are part of what has to be as it was.
    """
    njit = numba.njit(nogil=True, cache=True, boundscheck=False, **options)

    def decorate(loop: Callable[..., Any]) -> Any:
        dispatcher = njit(loop)
        cache = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if cache is not None:  # None where numba has nowhere to keep it, or is switched off
            cache._source_stamp = (cache._source_stamp, KERNELS)
        return dispatcher

    return decorate


jit = _compiled()
# Sums may be reordered into vector lanes (the lanes are the same whatever the thread), NaN and inf
# stay honest.
jit_sums = _compiled(fastmath={"reassoc", "contract"})
