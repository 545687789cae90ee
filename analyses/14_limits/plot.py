"""Draw limits.png and write the tables of README.md from report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
MARKS = ("<!-- limits: written by plot.py -->", "<!-- /limits -->")
TITLES = {
    "hook": "A step of DistributedDataParallel, time over that of what stands behind it",
    "coding": "Encoding to bytes and decoding from bytes, GB of the float32 gradient per second",
    "selecting": "Selecting",
    "summaries": "Summaries, time over `torch.sum`",
    "replay": "Replay of tracked rows of 65,536 elements, one thread",
    "store": "Writing rows, throughput over that of one file with fsync",
    "start": "Starting",
    "memory": "The peak of memory while encoding, beside gradient and state",
}


def table(part: str, lines: list[dict[str, Any]]) -> str:
    """One part as a table."""
    rows = [f"{TITLES[part]}. The columns: the case; the value; the limit.", ""]
    rows += ["| | measured | limit |", "|---|---|---|"]
    for line in lines:
        value = f"{line['value']:.2f} {_unit(line['unit'])}"
        limit, sign = line["asked"], "≥" if line["more"] else "≤"
        asked = "" if limit is None else f"{sign} {limit:g}{'' if _kept(line) else ', missed'}"
        rows.append(f"| {_case(line['case'])} | {value} | {asked} |")
    return "\n".join(rows)


def sizes(of_threads: dict[str, Any]) -> str:
    """Fixed costs and slopes as a table."""
    rows = [
        "The cost of a call that encodes 1,000 elements, and of each element beyond 10",
        "million. The columns: the method; µs with one and with two threads; ns with one",
        "and with two threads.",
        "",
        "| | fixed, 1 thread | 2 threads | per element, 1 thread | 2 threads |",
        "|---|---|---|---|---|",
    ]
    for name in of_threads["1"]:
        fixed = [f"{of_threads[n][name]['fixed_us']:.0f} µs" for n in ("1", "2")]
        slope = [f"{of_threads[n][name]['ns_per_element']:.2f} ns" for n in ("1", "2")]
        rows.append(f"| {_case(name)} | {' | '.join(fixed + slope)} |")
    return "\n".join(rows)


def _case(name: str) -> str:
    spec, _, rest = name.partition(", ")
    return f"`{spec}`, {rest}" if rest else f"`{spec}`"


def _unit(unit: str) -> str:
    plain = unit in ("GB/s", "s", "s over torch", "ms", "ms per row")
    return unit if plain or unit.startswith("times") else f"× {unit}"


def _kept(line: dict[str, Any]) -> bool:
    value, limit = line["value"], line["asked"]
    return bool(value >= limit if line["more"] else value <= limit)


def draw(report: dict[str, Any]) -> None:
    """Each method against reading the gradient once, and cost against size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 9), constrained_layout=True)
    rows = [line for line in report["parts"]["coding"] if line["ratio"] is not None]
    rows += [
        line for line in report["parts"]["selecting"] if line["unit"] == "reads" and line["ratio"]
    ]
    rows.sort(key=lambda line: -line["ratio"])
    colors = ["C1" if ", add" in line["case"] else "C0" for line in rows]
    left.barh([line["case"] for line in rows], [line["ratio"] for line in rows], color=colors)
    left.axvline(1, color="black", linestyle=":")
    left.set(xscale="log", xlabel="time over that of reading the gradient once (torch.sum)")
    left.tick_params(axis="y", labelsize=7)
    for place, (name, cost) in enumerate(report["sizes"]["2"].items()):
        numbers = {int(n): seconds for n, seconds in cost["seconds"].items()}
        style = {"color": "black", "lw": 2.5} if name == "read" else {"color": f"C{place % 10}"}
        dashes = "-" if place < 10 else "--"  # where the colours begin anew
        right.plot(list(numbers), list(numbers.values()), ls=dashes, label=name, **style)
    right.set(xscale="log", yscale="log", xlabel="elements", ylabel="seconds to encode, 2 threads")
    right.legend(fontsize=7, ncols=2)
    figure.savefig(HERE / "limits.png", dpi=110)


def main() -> None:
    """Write both."""
    report = json.loads((HERE / "report.json").read_text())
    tables = [table(part, lines) for part, lines in report["parts"].items()]
    tables.append(sizes(report["sizes"]))
    page = HERE / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    text = "\n\n".join([MARKS[0], *tables, MARKS[1]])
    page.write_text(before + text + after, encoding="utf-8")
    draw(report)


if __name__ == "__main__":
    main()
