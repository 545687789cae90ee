"""The states of a compressor, by parameter, whatever parameters are compressed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstats.compressors import Compressor
from gradstats.compressors.base import State
from gradstats.compressors.states import divided, joined, plain, restored

Key = int | str
Keys = tuple[Key, ...]


@dataclass(frozen=True)
class _Entry:
    """A state, and how many elements each of its parameters has."""

    state: State
    numels: tuple[int, ...]


class Memories:
    """States of parameters that are compressed together, in groups that may change.

    When a group is new, the states of the groups that its parameters were in are cut and joined
    anew: what has a number for each element goes with its parameter, means over elements are
    averaged, of the rest the first counts.

    Args:
        compressor: whose states they are; it leaves a state that was taken as it was.
        reversible: keep what `settle` may have to bring back; may be set later.
    """

    def __init__(self, compressor: Compressor, *, reversible: bool = False) -> None:
        self._compressor, self.reversible = compressor, reversible
        self._entries: dict[Keys, _Entry] = {}
        self._before: dict[Keys, _Entry] = {}
        self._saved: list[dict[Key, Any]] = []
        self._worker, self._workers = 0, 1

    def __contains__(self, keys: Keys) -> bool:
        """Whether any parameter of a group has a state."""
        kept = {key for group in self._entries for key in group}
        return any(key in kept or self._is_saved(key) for key in keys)

    def take(self, keys: Keys, grads: Sequence[Tensor], together: Tensor) -> State:
        """The state of a group, which stays its state until another one is put.

        Args:
            keys: of its parameters.
            grads: of its parameters.
            together: what is compressed.

        Raises:
            ValueError: a saved state is of a parameter of another size.
        """
        if keys not in self._entries:
            state = self._gathered(keys, grads, together)
            self._entries[keys] = _Entry(state, tuple(grad.numel() for grad in grads))
        return self._entries[keys].state

    def put(self, keys: Keys, state: State) -> None:
        """Give a group, whose state was taken, the state of its next step."""
        old = self._entries[keys]
        if self.reversible:
            self._before.setdefault(keys, old)
        self._entries[keys] = _Entry(state, old.numels)

    def settle(self, *, skipped: bool) -> None:
        """End a step of the optimizer; if it was skipped, the states of before come back."""
        if skipped:
            self._entries |= self._before
        self._before = {}

    def saved(self) -> dict[Key, Any]:
        """The states by parameter, in dicts, tuples, numbers and tensors on the CPU."""
        found = dict(self._saved[0]) if len(self._saved) == 1 else {}
        for keys, entry in self._entries.items():
            parts = divided(entry.state, entry.numels) if len(keys) > 1 else [entry.state]
            for key, part, numel in zip(keys, parts, entry.numels, strict=True):
                found[key] = {"numel": numel, "state": plain(part)}
        return found

    def load(
        self, saved: Sequence[Mapping[Key, Any]], *, worker: int = 0, workers: int = 1
    ) -> None:
        """Begin with what `saved` gave.

        Args:
            saved: on this worker; or on all workers of another number, in order.
            worker: this one, of use in the second case.
            workers: how many there are now.
        """
        self._saved = [dict(each) for each in saved]
        self._worker, self._workers = worker, workers
        self._entries, self._before = {}, {}

    def _gathered(self, keys: Keys, grads: Sequence[Tensor], together: Tensor) -> State:
        self._split_up(keys)
        if not any((key,) in self._entries or self._is_saved(key) for key in keys):
            return self._compressor.init(together)
        if len(keys) == 1:
            return self._single(keys[0], together)
        states = [
            self._single(key, grad.reshape(-1)) for key, grad in zip(keys, grads, strict=True)
        ]
        return joined(states, [grad.numel() for grad in grads])

    def _split_up(self, keys: Keys) -> None:
        """Make entries of their own of all parameters in groups that have some of these."""
        for old in [old for old in self._entries if len(old) > 1 and set(old) & set(keys)]:
            entry = self._entries.pop(old)
            parts = divided(entry.state, entry.numels)
            for key, part, numel in zip(old, parts, entry.numels, strict=True):
                self._entries[key,] = _Entry(part, (numel,))

    def _is_saved(self, key: Key) -> bool:
        return any(key in saved for saved in self._saved)

    def _single(self, key: Key, grad: Tensor) -> State:
        if (key,) in self._entries:
            return self._entries.pop((key,)).state
        if not self._is_saved(key):
            return self._compressor.init(grad)
        states = [self._restored(key, saved.pop(key, None), grad) for saved in self._saved]
        if len(states) == 1:
            return states[0]
        return self._compressor.resharded(states, self._worker, self._workers)

    def _restored(self, key: Key, saved: Any, grad: Tensor) -> State:
        state = self._compressor.init(grad)
        if saved is None:  # this one of the workers never had it
            return state
        if saved["numel"] != grad.numel():
            rule = f"the saved state of parameter {key} must be of {grad.numel()} elements"
            raise ValueError(f"{rule}, got one of {saved['numel']}")
        return restored(state, saved["state"])
