"""Writes the tables of contracts in docs/compressors.md; run it as a module."""

import inspect
import re
from pathlib import Path

from gradstats.compressors import (
    REFERENCE,
    SUPPORTED,
    compressors,
)

PAGE = Path(__file__).parents[2] / "docs" / "compressors.md"
HEAD = "| name | rule | settings | promises | bits | collective | reads | wants | reference |"
SHELVES = {"supported": SUPPORTED, "reference": REFERENCE}


def table(shelf):
    lines = [HEAD, re.sub(r"[^|]+", "---", HEAD)]
    return "\n".join([*lines, *(row(name, make) for name, make in SHELVES[shelf].items())])


def row(name, make):
    member = compressors(name, [0.01])[0]
    contract = member.contract
    doc = inspect.getdoc(make if inspect.isfunction(make) else type(member))
    cells = (
        f"`{name}`",
        doc.splitlines()[0].rstrip("."),
        settings(make),
        promises(contract),
        contract.bits.text if contract.bits else "–",
        contract.collective.replace("_", "-"),
        "–" if contract.host_reads is None else f"{contract.host_reads}",
        wants(contract),
        reference(doc),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def settings(make):
    """The arguments that are not fixed by the name, with their defaults."""
    fixed = getattr(make, "keywords", {})
    found = [
        f"`{name}`" if value.default is value.empty else f"`{name}={value.default}`"
        for name, value in inspect.signature(make).parameters.items()
        if name not in fixed
    ]
    return ", ".join(found) or "–"


def promises(contract):
    found = []
    if contract.unbiased:
        found.append("unbiased")
    if contract.omega:
        found.append(f"ω ≤ {contract.omega.text}")
    if contract.delta:
        place = " in expectation" if contract.in_expectation else ""
        found.append(f"δ ≥ {contract.delta.text}{place}")
    return ", ".join(found) or "nothing"


def wants(contract):
    found = ["feedback"] * contract.wants_feedback + ["memory"] * contract.has_memory
    found += ["random numbers"] * contract.random + list(contract.needs)
    return ", ".join(found) or "–"


def reference(doc):
    found = re.search(r"References:\n(.*?)(?:\n\n|\Z)", doc, re.DOTALL)
    return " ".join(found.group(1).split()).rstrip(".") if found else "–"


def write(page):
    for shelf in SHELVES:
        start, end = f"<!-- {shelf} -->", f"<!-- end of {shelf} -->"
        before, rest = page.split(start)
        page = f"{before}{start}\n\n{table(shelf)}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
