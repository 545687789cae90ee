"""One grammar for commands, legends and tables: `topk(0.01)`, `ef(topk(0.01) | qsgd(bits=4))`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from difflib import SequenceMatcher
from types import ModuleType

from gradstats.compressors.base import Compressor
from gradstats.compressors.syntax import Argument, Call, Piped, parse
from gradstats.compressors.wrappers.pipe import Pipe, Stage

WORDS = {"True": True, "False": False}
NEAR = 0.6  # similarity from which a known name is suggested for a misspelt one


Factory = Callable[..., Compressor | Stage]
Known = dict[str, Factory]
Parameters = Mapping[str, inspect.Parameter]


def build(spec: str, known: Known, ratios: Iterable[float] = ()) -> list[Compressor]:
    """The compressors that a spec stands for: one, or one per ratio if it leaves the ratio open.

    Args:
        spec: in the grammar; `pkg.module:Class` names your own class.
        known: the compressors and stages by name.
        ratios: for a method that takes a ratio and was given none.

    Raises:
        ValueError: not in the grammar, unknown name, or arguments that the compressor refuses.
    """
    call = parse(spec)
    open_ratio = _leaf_wants_ratio(call, known, spec)
    if not open_ratio:
        return [_compressor(call, known, spec, None)]
    chosen = list(ratios)
    if not chosen:
        name = (call.stages[0] if isinstance(call, Piped) else call).name
        raise ValueError(f"compressor {spec!r} must be given a ratio, e.g. {name}(0.01)")
    return [_compressor(call, known, spec, ratio) for ratio in chosen]


def _leaf_wants_ratio(call: Call | Piped, known: Known, spec: str) -> bool:
    if isinstance(call, Piped):
        return any(_leaf_wants_ratio(stage, known, spec) for stage in call.stages)
    nested = [
        value
        for _, value, is_nested in _arguments(call, known, spec)
        if is_nested and isinstance(value, Call | Piped)
    ]
    if nested:
        return any(_leaf_wants_ratio(value, known, spec) for value in nested)
    signature = inspect.signature(find(call.name, known, spec)).parameters
    given = call.arguments or ()
    named = any(key == "ratio" for key, _ in given)
    first = next(iter(signature), None) == "ratio" and any(key is None for key, _ in given)
    wanted = "ratio" in signature and signature["ratio"].default is inspect.Parameter.empty
    return wanted and not named and not first


def _arguments(call: Call, known: Known, spec: str) -> Iterator[tuple[str | None, Argument, bool]]:
    """Key, value, and whether the value is a compressor.

    A name alone is one if the setting is declared as a `Compressor`, or if the name is known and
    the setting is no word: `ef(fp8)`, but `co3(fp8)`.
    """
    signature = inspect.signature(find(call.name, known, spec)).parameters
    names = list(signature)
    for index, (key, value) in enumerate(call.arguments or ()):
        _check_setting(call.name, key, signature, spec)
        setting = signature.get(key or (names[index] if index < len(names) else ""))
        word = setting is not None and isinstance(setting.default, str)
        bare = isinstance(value, Call) and value.arguments is None
        known_name = isinstance(value, Call) and (value.name in known or ":" in value.name)
        inner = setting is not None and setting.annotation in ("Compressor", Compressor)
        nested = isinstance(value, Call | Piped) and (
            inner or not (bare and (word or not known_name))
        )
        yield key, value, nested


def _check_setting(name: str, key: str | None, signature: Parameters, spec: str) -> None:
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.values())
    if key is None or key in signature or takes_any:
        return
    names = f"be one of {', '.join(signature)}" if signature else "not be given"
    rule = f"settings of {name} must {names}"
    raise ValueError(f"{rule}, got {key!r} in {spec!r}{_did_you_mean(key, signature)}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean topk?` with the first of the nearest names; empty where none is near."""
    likeness = {each: SequenceMatcher(None, name.lower(), each).ratio() for each in known}
    nearest = max(likeness, key=lambda each: likeness[each], default="")
    return f"; did you mean {nearest}?" if likeness.get(nearest, 0) >= NEAR else ""


def find(name: str, known: Known, spec: str) -> Factory:
    """Return the class or function of a name.

    Args:
        name: One of the known names, or `pkg.module:Class`.
        known: The compressors and stages by name.
        spec: In which the name stands, for the error.

    Raises:
        ValueError: There is none of that name.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        rule = f"compressor must be one of {', '.join(known)}"
        raise ValueError(f"{rule}, got {name!r} in {spec!r}{_did_you_mean(name, known)}")
    module, _, attribute = name.partition(":")
    try:
        source = importlib.import_module(module)
    except Exception as error:  # whatever anyone's module may raise
        fact = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot import compressor {name!r}: {fact}") from error
    factory: Factory | None = getattr(source, attribute, None)
    if factory is None:
        classes = [each for each, value in vars(source).items() if _is_own(value, source)]
        fact = f"{module} has no {attribute}, but {', '.join(classes) or 'no compressor'}"
        raise ValueError(
            f"cannot import compressor {name!r}: {fact}{_did_you_mean(attribute, classes)}"
        )
    if not callable(factory):
        raise ValueError(f"compressor {name!r} must be a class, got {factory!r}")
    if isinstance(factory, type) and not issubclass(factory, Compressor | Stage):
        rule = "must be a subclass of gradstats.compressors.Compressor"
        raise ValueError(f"compressor {name!r} {rule}, got {factory!r}")
    return factory


def _is_own(value: object, source: ModuleType) -> bool:
    """Whether a value of a module is a compressor that is written there."""
    ours = isinstance(value, type) and issubclass(value, Compressor)
    return ours and getattr(value, "__module__", "") == source.__name__


def _compressor(call: Call | Piped, known: Known, spec: str, ratio: float | None) -> Compressor:
    if isinstance(call, Piped):
        return Pipe(tuple(_make(stage, known, spec, ratio) for stage in call.stages))
    part = _make(call, known, spec, ratio)
    if not isinstance(part, Compressor):
        raise ValueError(f"{call.name} must follow a compressor, got {spec!r}")
    return part


def _make(call: Call, known: Known, spec: str, ratio: float | None) -> Compressor | Stage:
    factory = find(call.name, known, spec)
    positional: list[object] = []
    named: dict[str, object] = {}
    for key, argument, is_nested in _arguments(call, known, spec):
        value: object = argument
        if is_nested:
            assert isinstance(argument, Call | Piped)
            value = _compressor(argument, known, spec, ratio)
        elif isinstance(argument, Call):
            value = WORDS.get(argument.name, argument.name)
        if key is None:
            positional.append(value)
        elif key in named:
            raise ValueError(f"compressor must be given {key} once, got {spec!r}")
        else:
            named[key] = value
    if (
        ratio is not None
        and _leaf_wants_ratio(call, known, spec)
        and not any(isinstance(value, Compressor) for value in (*positional, *named.values()))
    ):
        named["ratio"] = ratio
    _check_arguments(call.name, factory, positional, named, spec)
    try:
        part = factory(*positional, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot make compressor {spec!r}: {error}") from error
    if not isinstance(part, Compressor | Stage):
        raise ValueError(f"compressor {call.name!r} must make a Compressor, got {part!r}")
    checked: object = part
    if not is_dataclass(checked):
        rule = f"compressor {call.name!r} must be a frozen dataclass"
        raise ValueError(f"{rule}: write @dataclass(frozen=True) above the class")
    return part


def _check_arguments(
    name: str, factory: Factory, positional: list[object], named: dict[str, object], spec: str
) -> None:
    """Check number and types of the settings before a constructor gets them."""
    signature = inspect.signature(factory)
    names = ", ".join(signature.parameters) or "none"
    try:
        given = signature.bind(*positional, **named).arguments
    except TypeError as error:
        wrong = str(error).replace("too many positional arguments", "too many settings")
        wrong = wrong.replace("missing a required argument: ", "no value for ")
        fact = f"{wrong}; its settings are {names}"
        raise ValueError(f"cannot make compressor {spec!r}: {name} has {fact}") from error
    for key, value in given.items():
        rule = _rule_of(signature.parameters[key].annotation, value)
        if rule:
            raise ValueError(f"{key} of {name} must be {rule}, got {value!r} in {spec!r}")


def _rule_of(annotation: object, value: object) -> str:
    """What a value must be and is not, by the type of its setting; "" if it is right."""
    kinds: dict[object, tuple[object, str]] = {
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
        "bool": (bool, "True or False"),
        "str": (str, "a word"),
        "Compressor": (Compressor, "a compressor such as topk(0.01)"),
    }
    name = annotation.__name__ if isinstance(annotation, type) else annotation
    wanted, rule = kinds.get(name, (object, ""))
    wrong = name != "bool" and isinstance(value, bool)
    return rule if wrong or not isinstance(value, wanted) else ""  # type: ignore[arg-type]
