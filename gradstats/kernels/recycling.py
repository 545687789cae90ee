"""Memory that is used again from step to step, so that the system need not clear it each time."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

SMALLEST = 1 << 16  # bytes below which new memory costs nothing
_count_of_users = getattr(torch._C, "_storage_Use_Count", None)  # None: nothing is used again
_pool: ContextVar[Pool | None] = ContextVar("pool", default=None)


class Pool:
    """Host memory that was handed out, and is handed out again once no tensor uses it.

    Example:
        >>> pool = Pool()
        >>> with pool.open():
        ...     first = empty((100_000,), torch.float32)
        ...     address = first.data_ptr()
        ...     del first
        ...     again = empty((100_000,), torch.float32)
        >>> again.data_ptr() == address
        True
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._recent: set[int] = set()  # handed out since the last `trim`
        self._before: set[int] = set()  # or since the one before

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let `empty` take memory of this pool inside the block."""
        before = _pool.set(self)
        try:
            yield
        finally:
            _pool.reset(before)

    def trim(self) -> None:
        """Give back what was not handed out since the last call but one."""
        kept = self._recent | self._before  # two blocks may take turns
        self._blocks = [block for block in self._blocks if id(block) in kept]
        self._recent, self._before = set(), self._recent

    def take(self, nbytes: int) -> Tensor:
        """Return so many bytes that no other tensor uses."""
        for block in self._blocks:
            if len(block) == nbytes and _is_free(block):
                break
        else:
            block = torch.empty(nbytes, dtype=torch.uint8)
            self._blocks.append(block)
        self._recent.add(id(block))
        return block


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return a tensor of any content, in memory of the open pool if there is one."""
    pool, nbytes = _pool.get(), math.prod(shape) * dtype.itemsize
    on_host = torch.device(device).type == "cpu"
    if pool is None or not on_host or nbytes < SMALLEST or _count_of_users is None:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return pool.take(nbytes).view(dtype).view(tuple(shape))


def empty_like(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor of any content, of the same shape, dtype and device."""
    return empty(tensor.shape, tensor.dtype, tensor.device)


def _users(block: Tensor) -> tuple[int, ...]:
    """How many hold a block's storage, and how many the object of Python that stands for it.

    Of all who hold that object, torch counts one.
    """
    storage = block.untyped_storage()
    if _count_of_users is None:
        return ()
    return _count_of_users(storage._cdata), sys.getrefcount(storage)


def _is_free(block: Tensor) -> bool:
    """Whether nothing holds the storage but the block itself."""
    return all(now <= alone for now, alone in zip(_users(block), ALONE, strict=True))


ALONE = _users(torch.empty(1, dtype=torch.uint8))
