"""What `gradstats compressors` and `gradstats families` print, as documents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstats.compressors import Compressor, Contract, Stage
    from gradstats.families import Family

Document = dict[str, Any]
Factory = Callable[..., Any]
SAMPLE = (64, 64)  # shape of the gradient whose payload shows the kind of a method
RATIO, INNER = "0.01", "topk(0.01)"
SECTION = re.compile(r"^(\w+):\n((?:    .*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^(\w+): (.*(?:\n    .*)*)", re.MULTILINE)


def compressor_rows() -> list[Document]:
    """One row per compressor, memory, policy and stage of the grammar."""
    return [
        {
            "name": name,
            "kind": kind,
            "status": status,
            "memory": "–" if contract is None else contract.has_memory,
            "feedback": "–" if contract is None else contract.wants_feedback,
            "promise": promise(contract),
            "summary": summary_of(factory),
        }
        for name, factory, status in _grammar()
        for member in [_made(name, factory)]
        for kind, contract in [(_kind(member, status), getattr(member, "contract", None))]
    ]


def compressor_document(name: str) -> Document:
    """Everything about one compressor.

    Args:
        name: In the grammar, or `module:Class` of one's own.

    Raises:
        SettingError: There is none of that name.
    """
    from gradstats.compressors import factory
    from gradstats.settings import naming

    with naming("NAME"):
        made_by = factory(name)
    statuses = {known: status for known, _, status in _grammar()}
    member, status = _made(name, made_by), statuses.get(name, "your own")
    spec = _example(name, made_by)
    return {
        "name": name,
        "summary": summary_of(made_by),
        "kind": _kind(member, status),
        "status": status,
        "settings": list(_settings(made_by)),
        "contract": _contract(getattr(member, "contract", None)),
        "source": section_of(made_by, "References"),
        "example": spec,
        "command": f'gradstats replay run.zarr --compressors "{spec}"',
    }


def family_rows() -> list[Document]:
    """One row per family of distributions."""
    from gradstats.families import FAMILIES

    return [
        {
            "name": each.name,
            "parameters": ", ".join(row["name"] for row in _settings(each)),
            "estimators": ", ".join(each.methods),
            "summary": summary_of(each),
        }
        for each in FAMILIES
    ]


def family_document(name: str) -> Document:
    """Everything about one family of distributions.

    Args:
        name: Of the family.

    Raises:
        SettingError: There is none of that name.
    """
    from gradstats.families import family
    from gradstats.settings import naming

    with naming("NAME"):
        chosen: type[Family] = family(name)
    return {
        "name": name,
        "summary": summary_of(chosen),
        "parameters": list(_settings(chosen)),
        "estimators": list(chosen.methods),
        "source": section_of(chosen, "References"),
        "example": f"gradstats.families.family({name!r}).fit(grad)",
        "command": f"gradstats fit run.zarr --families {name}",
    }


def promise(contract: Contract | None) -> str:
    """The bound of a contract in a few words."""
    if contract is None:
        return "–"
    words = ["unbiased"] if contract.unbiased else []
    words += [f"ω <= {contract.omega.text}"] if contract.omega else []
    words += [f"δ = {contract.delta.text}"] if contract.delta else []
    return ", ".join(words) or "–"


def _contract(contract: Contract | None) -> Document:
    if contract is None:
        return {}
    return {
        "promise": promise(contract),
        "collective": contract.collective,
        "rounds": contract.rounds,
        "random": contract.random,
        "needs a memory": contract.has_memory,
        "wants error feedback": contract.wants_feedback,
        "needs": ", ".join(contract.needs) or "the gradient alone",
    }


def summary_of(made_by: Factory) -> str:
    """The first sentence of a class's docstring, without markup."""
    text = (inspect.getdoc(_class(made_by)) or "").partition("\n\n")[0]
    return re.sub(r":math:`([^`]*)`|`([^`]*)`", r"\1\2", " ".join(text.split()))


def section_of(made_by: Factory, title: str) -> str:
    """A section of a docstring in Google form, as one paragraph; "" if it has none."""
    return " ".join(_sections(made_by).get(title, "").split())


def _sections(made_by: Factory) -> dict[str, str]:
    text = (inspect.getdoc(_class(made_by)) or "") + "\n"
    return {title: inspect.cleandoc("\n" + body) for title, body in SECTION.findall(text)}


def _class(made_by: Factory) -> Any:
    return made_by.func if isinstance(made_by, partial) else made_by


def _settings(made_by: Factory) -> Iterator[Document]:
    """Name, default and meaning of each argument."""
    texts = dict(ENTRY.findall(_sections(made_by).get("Args", "")))
    fixed = made_by.keywords if isinstance(made_by, partial) else {}
    for each in inspect.signature(made_by).parameters.values():
        if each.name not in fixed:
            needed = each.default is each.empty
            meaning = " ".join(texts.get(each.name, "").split())
            yield {
                "name": each.name,
                "default": "(needed)" if needed else _written(each.default),
                "meaning": meaning,
            }


def _written(default: Any) -> str:
    return str(default) if default != "" else '""'


def _grammar() -> Iterator[tuple[str, Factory, str]]:
    """Name, factory and status of everything that the grammar knows."""
    from gradstats import compressors as room

    groups: dict[str, Mapping[str, Factory]] = {
        "supported": room.SUPPORTED,
        "reference": room.REFERENCE,
        "memory": room.MEMORIES,
        "exchange": room.COLLECTIVES,
        "policy": room.POLICIES,
        "wrapper": room.GRANULARITIES,
        "stage": room.STAGES,
    }
    for status, members in groups.items():
        for name, made_by in members.items():
            yield name, made_by, status


def _example(name: str, made_by: Factory) -> str:
    """A spec that can be run as it stands."""
    if name == "ans":
        return "qsgd | ans"
    from gradstats.compressors import COLLECTIVES, STAGES

    if name in STAGES:
        return f"{INNER} | {name}"
    if name in COLLECTIVES:
        return f"{name}(mxfp8)"
    written = []
    for each in inspect.signature(made_by).parameters.values():
        if each.default is each.empty:
            inner = "qsgd" if "QSGD" in str(each.annotation) else INNER
            written.append(RATIO if each.name == "ratio" else inner)
    return f"{name}({', '.join(written)})" if written else name


def _made(name: str, made_by: Factory) -> Compressor | Stage | None:
    """An instance with the settings of the example; None of a class that needs others."""
    from gradstats.compressors import STAGES, compressor

    try:
        return made_by() if name in STAGES else compressor(_example(name, made_by))
    except (TypeError, ValueError):
        return None


def _kind(member: Any, status: str) -> str:
    """Sparsifier, quantiser and so on, by what a method sends for a sample."""
    if status in ("memory", "exchange", "policy", "wrapper", "stage"):
        return status
    if member is None:
        return "–"
    import torch

    from gradstats.compressors import Rng
    from gradstats.payloads.sparse import Scattered

    if "matrix" in member.contract.needs:
        return "low rank"
    grad = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
    payload, _ = member.encode(grad, member.init(grad), Rng(0))
    return "sparsifier" if isinstance(payload, Scattered) else "quantiser"
