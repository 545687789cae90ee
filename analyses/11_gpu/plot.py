"""docs/gpu.md from report.json, and the figure: time against the bytes that have to move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- written by analyses/11_gpu/plot.py: begin -->\n", "<!-- end -->\n"
PARTS = {
    "correct": "Are the results of the GPU those of the CPU?",
    "capture": "Is a training that is recorded the same, and who waits?",
    "fast": "What does every method cost?",
    "hook": "Does the communication hook train?",
    "whole": "Capture, replay and report",
}
NOT_YET = "**Not yet run.** No report of a GPU has been committed.\n"


def main() -> None:
    """Write the page, and the figure where there is something to draw."""
    file = HERE / "report.json"
    report = json.loads(file.read_text()) if file.exists() else None
    PAGE.write_text(filled(PAGE.read_text(), text(report)))
    if report:
        draw(report, HERE / "speed.png")


def filled(page: str, text: str) -> str:
    """The page with the text between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def text(report: dict[str, Any] | None) -> str:
    """What has run where, with which result; a table for each part."""
    if report is None:
        return NOT_YET
    machine, rows = report["machine"], report["rows"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    lines = [
        f"**{machine['device']}**, CUDA {machine['cuda']}, {versions}; {machine['clocks']}.",
        "",
    ]
    for part, question in PARTS.items():
        own = [row for row in rows if row["part"] == part]
        lines += [f"### {question}", "", *summary(own), ""]
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """How many checks passed, then a line for every check."""
    if not rows:
        return ["**Not yet run.**"]
    counts = {s: sum(r["status"] == s for r in rows) for s in ("ok", "failed", "left out")}
    lines = [", ".join(f"{n} {status}" for status, n in counts.items()) + ".", ""]
    lines += ["| check | status | numbers |", "|---|---|---|"]
    return lines + [f"| {row['check']} | {row['status']} | {numbers(row)} |" for row in rows]


def numbers(row: dict[str, Any]) -> str:
    """What a row measured, or why it did not."""
    if row["reason"]:
        return str(row["reason"]).replace("|", "\\|")
    hidden = ("part", "check", "status", "reason", "seconds", "weights", "most")
    facts = {name: value for name, value in row.items() if name not in hidden}
    return ", ".join(f"{name} {shown(value)}" for name, value in facts.items())


def shown(value: Any) -> str:
    """A number to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(report: dict[str, Any], path: Path) -> None:
    """Milliseconds of each method at the largest size, beside a copy of the vector."""
    import seaborn
    from matplotlib.figure import Figure

    timed = [row for row in report["rows"] if row["part"] == "fast" and "ms" in row]
    if not timed:
        return
    largest = timed[0]["check"].split(":")[0]
    chosen = [row for row in timed if row["check"].startswith(largest)]
    figure = Figure(figsize=(7, 0.28 * len(chosen) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [row["check"].split(": ")[1] for row in chosen]
    seaborn.barplot(x=[row["ms"] for row in chosen], y=names, ax=axes, color="#4878a8")
    axes.set(xscale="log", xlabel=f"milliseconds, {largest}, {report['machine']['device']}")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
