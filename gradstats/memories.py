"""The states of a compressor, by parameter, whatever parameters are compressed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors import Compressor
from gradstats.compressors.base import State
from gradstats.compressors.states import divided, joined, plain, restored

Keys = tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    """A state, and how many elements each of its parameters has."""

    state: State
    numels: tuple[int, ...]


class Memories:
    """States of parameters that are compressed together, in groups that may change.

    When a group is new, the states of the groups that its parameters were in are cut and joined
    anew: what has a number for each element goes with its parameter, of the rest the first counts.

    Args:
        compressor: whose states they are.
    """

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._entries: dict[Keys, _Entry] = {}
        self._saved: dict[int, Any] = {}

    def take(self, keys: Keys, grads: Sequence[Tensor], together: Tensor) -> State:
        """The state of a group; it must be put back.

        Args:
            keys: of its parameters.
            grads: of its parameters.
            together: what is compressed.

        Raises:
            ValueError: a saved state is of a parameter of another size.
        """
        if keys in self._entries:
            return self._entries.pop(keys).state
        self._split_up(keys)
        known = [key for key in keys if (key,) in self._entries or key in self._saved]
        if not known:
            return self._compressor.init(together)
        if len(keys) == 1:
            return self._single(keys[0], together)
        states = [
            self._single(key, grad.reshape(-1)) for key, grad in zip(keys, grads, strict=True)
        ]
        return joined(states, [grad.numel() for grad in grads])

    def put(self, keys: Keys, grads: Sequence[Tensor], state: State) -> None:
        """Keep the state of a group for its next step."""
        self._entries[keys] = _Entry(state, tuple(grad.numel() for grad in grads))

    def saved(self) -> dict[int, Any]:
        """The states by parameter, in dicts, tuples, numbers and tensors on the CPU."""
        found = dict(self._saved)
        for keys, entry in self._entries.items():
            parts = divided(entry.state, entry.numels) if len(keys) > 1 else [entry.state]
            for key, part, numel in zip(keys, parts, entry.numels, strict=True):
                found[key] = {"numel": numel, "state": plain(part)}
        return found

    def load(self, saved: dict[int, Any]) -> None:
        """Begin with what `saved` gave."""
        self._saved, self._entries = dict(saved), {}

    def _split_up(self, keys: Keys) -> None:
        """Make entries of their own of all parameters in groups that have some of these."""
        for old in [old for old in self._entries if len(old) > 1 and set(old) & set(keys)]:
            entry = self._entries.pop(old)
            parts = divided(entry.state, entry.numels)
            for key, part, numel in zip(old, parts, entry.numels, strict=True):
                self._entries[key,] = _Entry(part, (numel,))

    def _single(self, key: int, grad: Tensor) -> State:
        if (key,) in self._entries:
            return self._entries.pop((key,)).state
        state = self._compressor.init(grad)
        if key not in self._saved:
            return state
        saved = self._saved.pop(key)
        if saved["numel"] != grad.numel():
            rule = f"the saved state of parameter {key} must be of {grad.numel()} elements"
            raise ValueError(f"{rule}, got one of {saved['numel']}")
        return restored(state, saved["state"])
