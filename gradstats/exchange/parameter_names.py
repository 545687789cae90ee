"""Which parameter is which, also in the next process: by name, or by number from the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Key = int | str
Described = tuple[Key, tuple[int, ...], str]
REMEDY = "make the state with named_parameters=model.named_parameters()"
UNKNOWN = "cannot tell which parameter of a checkpoint is which"
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


class IncompatibleKeys(NamedTuple):
    """What of a checkpoint and a model does not belong together, as torch's modules tell it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Names:
    """The keys of parameters.

    Args:
        named: (name, parameter) of the model; without them parameters are numbered as they are
            first seen.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]] | None = None) -> None:
        pairs = _unwrapped(_pairs(named)) if named is not None else []
        self.named = named is not None
        self._keys: dict[Tensor, Key] = {}
        for name, parameter in pairs:
            self._keys.setdefault(parameter, name)
        self._places = {parameter: -place for place, parameter in enumerate(self._keys)}
        self._expected: list[Described] = []  # of a checkpoint without names
        self.seen = False

    def see(self, parameters: Sequence[Tensor]) -> None:
        """Number what is new of a bucket, from its last to its first.

        Raises:
            ValueError: a parameter has no name, or is not the one of its number in a checkpoint.
        """
        self.seen = True
        for parameter in reversed(parameters):
            if parameter in self._keys:
                continue
            if self.named:
                what = f"got none for one of shape {tuple(parameter.shape)}"
                raise ValueError(
                    f"named_parameters must have every parameter of the model, {what}"
                )
            number = len(self._keys)
            self._keys[parameter] = self._places[parameter] = number
            self._check(_described(number, parameter))

    def see_last(self) -> None:
        """Check that a first backward pass has shown as many parameters as a checkpoint has.

        Raises:
            ValueError: it has not.
        """
        expected, self._expected = self._expected, []
        if expected and len(expected) != len(self._keys):
            fact = f"it has {len(expected)} parameters, got a model that trains {len(self._keys)}"
            raise ValueError(f"{UNKNOWN}: {fact}: {REMEDY}")

    def key(self, parameter: Tensor) -> Key:
        """The name or the number."""
        return self._keys[parameter]

    def place(self, parameter: Tensor) -> int:
        """The order in which parameters are compressed: from the last of the model."""
        return self._places[parameter]

    @property
    def order(self) -> list[Key]:
        """The names; numbers are known too late to be compared."""
        return list(self._keys.values()) if self.named else []

    def described(self) -> list[Described]:
        """Key, shape and dtype of what is trained."""
        if self._expected:  # nothing was seen since it was loaded
            return self._expected
        trained = {p: key for p, key in self._keys.items() if p.requires_grad or not self.named}
        return [_described(key, parameter) for parameter, key in trained.items()]

    def recall(self, saved: Iterable[Sequence[Any]]) -> None:
        """Take `described` of another process for what is trained, until a bucket is seen."""
        self._expected = [(key, tuple(shape), dtype) for key, shape, dtype in saved]

    def match(
        self, saved: Iterable[Sequence[Any]], remembered: Collection[Key], *, strict: bool
    ) -> tuple[dict[Key, Key], IncompatibleKeys]:
        """Match the parameters of a checkpoint with the parameters of this model.

        Args:
            saved: key, shape and dtype of what the checkpoint's state trained.
            remembered: Keys of the checkpoint whose parameters have a memory.
            strict: refuse what does not fit; else take the part that does.

        Returns:
            The key in this model for each key of the checkpoint that fits, and what does not fit.

        Raises:
            ValueError: it does not fit, or that cannot be known without names.
        """
        theirs = [(key, tuple(shape), dtype) for key, shape, dtype in saved]
        if not theirs and not remembered:  # nothing was trained yet
            return {}, IncompatibleKeys([], [])
        by_name = all(isinstance(key, str) for key, _, _ in theirs)
        if self.named and by_name:
            return self._by_name(theirs, set(remembered), strict)
        if by_name:
            raise ValueError(f"cannot load a checkpoint by name without names: {REMEDY}")
        if not strict:
            raise ValueError(f"cannot load a part of a checkpoint without names: {REMEDY}")
        _check_unambiguous(theirs, set(remembered))
        if not self.named:
            return {key: key for key, _, _ in theirs}, IncompatibleKeys([], [])
        return self._by_number(theirs), IncompatibleKeys([], [])

    def _by_name(
        self, theirs: list[Described], remembered: set[Key], strict: bool
    ) -> tuple[dict[Key, Key], IncompatibleKeys]:
        ours = self.described()
        trained, own, saved = set(ours), set(self._keys.values()), set(theirs)
        # a parameter that was frozen when it was saved may have a memory from before
        frozen = remembered - {key for key, _, _ in theirs}
        missing = [_written(each) for each in ours if each not in saved and each[0] not in frozen]
        unexpected = [_written(each) for each in theirs if each not in trained]
        unexpected += sorted(map(str, frozen - own))
        if strict and (missing or unexpected):
            facts = [f"it lacks {', '.join(missing)}"] * bool(missing)
            facts += [f"it has {', '.join(unexpected)}, not trained here"] * bool(unexpected)
            remedy = "strict=False loads the part that fits"
            raise ValueError(f"cannot load the checkpoint: {'; '.join(facts)}: {remedy}")
        fitting = {key: key for key, *_ in saved & trained} | {key: key for key in frozen & own}
        return fitting, IncompatibleKeys(missing, unexpected)

    def _by_number(self, theirs: list[Described]) -> dict[Key, Key]:
        """Parameters with names, a checkpoint without: one by one from the last."""
        ours = self.described()[::-1]
        if [each[1:] for each in ours] != [each[1:] for each in theirs]:
            fact = "its parameters, which have no names, are others or in another order"
            raise ValueError(f"cannot load the checkpoint: {fact}")
        return {key: own for (key, _, _), (own, _, _) in zip(theirs, ours, strict=True)}

    def _check(self, parameter: Described) -> None:
        number = int(parameter[0])
        if not self._expected:
            return
        if number >= len(self._expected) or self._expected[number] != parameter:
            has = self._expected[number : number + 1]
            fact = f"its number {number} is {_written(has[0]) if has else 'none'}"
            got = f"got {_written(parameter)}"
            raise ValueError(f"{UNKNOWN}: {fact}, {got}: {REMEDY}")


def _pairs(named: Any) -> list[tuple[str, Tensor]]:
    """Names and parameters.

    Raises:
        ValueError: they are none.
    """
    rule = "named_parameters must be model.named_parameters(), pairs of a name and a parameter"
    if not isinstance(named, Iterable):
        raise ValueError(f"{rule}, got {type(named).__name__}")
    pairs = list(named.items() if isinstance(named, Mapping) else named)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            given = "parameters without names" if isinstance(pair, Tensor) else repr(pair)
            raise ValueError(f"{rule}, got {given}")
    return pairs


def _described(key: Key, parameter: Tensor) -> Described:
    return key, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")


def _written(described: Described) -> str:
    key, shape, dtype = described
    return f"{key} ({dtype} of {list(shape)})"


def _check_unambiguous(saved: list[Described], remembered: set[Key]) -> None:
    kinds = Counter((shape, dtype) for key, shape, dtype in saved if key in remembered)
    for (shape, dtype), count in kinds.items():
        if count > 1:
            fact = f"{count} are {dtype} of {list(shape)}, and without names any could be any"
            raise ValueError(f"{UNKNOWN}: {fact}: {REMEDY}")


def _unwrapped(pairs: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Names without what wrappers of the whole model put before them."""
    for wrapper in (*WRAPPERS, *WRAPPERS):
        if pairs and all(name.startswith(wrapper) for name, _ in pairs):
            pairs = [(name.removeprefix(wrapper), parameter) for name, parameter in pairs]
    return pairs
