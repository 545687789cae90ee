"""The states of a compressor, by parameter, whatever parameters are compressed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstats.compressors import Compressor
from gradstats.compressors.rounds import State
from gradstats.compressors.states import divided, joined, plain, restored

Key = int | str
Keys = tuple[Key, ...]


@dataclass(frozen=True)
class _Entry:
    """A state, and the shapes of its parameters."""

    state: State
    shapes: tuple[torch.Size, ...]

    @property
    def numels(self) -> list[int]:
        """Elements of the parameters."""
        return [shape.numel() for shape in self.shapes]


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
        self._saved: dict[Key, Any] = {}
        self._known: set[Key] = set()  # that have a state, saved or not

    def __bool__(self) -> bool:
        """Whether any parameter has a state."""
        return bool(self._known)

    def __contains__(self, keys: Keys) -> bool:
        """Whether any parameter of a group has a state."""
        return not self._known.isdisjoint(keys)

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
            self._known.update(keys)
            state = self._gathered(keys, grads, together)
            for key in keys:  # the parts of the old memory go
                self._entries.pop((key,), None)
                self._saved.pop(key, None)
            self._entries[keys] = _Entry(state, tuple(grad.shape for grad in grads))
        return self._entries[keys].state

    def put(self, keys: Keys, state: State) -> None:
        """Give a group, whose state was taken, the state of its next step."""
        old = self._entries[keys]
        if self.reversible:
            self._before.setdefault(keys, old)
        self._entries[keys] = _Entry(state, old.shapes)

    def settle(self, *, skipped: bool) -> None:
        """End a step of the optimizer; if it was skipped, the states before it come back."""
        if skipped:
            self._entries |= self._before
        self._before = {}

    def saved(self) -> dict[Key, Any]:
        """The states by parameter, in dicts, tuples, numbers and tensors on the CPU."""
        saved = dict(self._saved)
        for keys, entry in self._entries.items():
            parts = divided(entry.state, entry.numels) if len(keys) > 1 else [entry.state]
            for key, part, shape in zip(keys, parts, entry.shapes, strict=True):
                saved[key] = _saved(part, shape)
        return saved

    def load(self, saved: Mapping[Key, Any]) -> None:
        """Begin with the memories that `saved` returned; they are not changed."""
        self._saved, self._entries, self._before = dict(saved), {}, {}
        self._known = set(saved)

    def _gathered(self, keys: Keys, grads: Sequence[Tensor], together: Tensor) -> State:
        self._split_up(keys)
        if not any((key,) in self._entries or key in self._saved for key in keys):
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
            for key, part, shape in zip(old, parts, entry.shapes, strict=True):
                self._entries[key,] = _Entry(part, (shape,))

    def _single(self, key: Key, grad: Tensor) -> State:
        if (key,) in self._entries:
            return self._entries[key,].state
        state = self._compressor.init(grad)
        if key not in self._saved:
            return state
        saved = self._saved[key]
        if saved["numel"] != grad.numel():
            rule = f"the saved state of parameter {key} must be of {grad.numel()} elements"
            raise ValueError(f"{rule}, got one of {saved['numel']}")
        return restored(state, saved["state"])


def resharded(
    compressor: Compressor, saved: Sequence[Mapping[Key, Any]], worker: int, workers: int
) -> dict[Key, Any]:
    """The memories of one worker of `workers`, from those saved on another number of workers.

    Raises:
        ValueError: the compressor's memory does not allow it.
    """
    memories = {}
    for key in dict.fromkeys(key for each in saved for key in each):
        shape = next(each[key]["shape"] for each in saved if key in each)
        blank = torch.zeros(shape)
        states = [
            restored(compressor.init(blank), each[key]["state"])
            if key in each
            else compressor.init(blank)  # this worker never had a gradient of it
            for each in saved
        ]
        state = compressor.resharded(states, worker, workers)
        memories[key] = _saved(state, torch.Size(shape))
    return memories


def _saved(state: State, shape: torch.Size) -> dict[str, Any]:
    return {"numel": shape.numel(), "shape": list(shape), "state": plain(state)}
