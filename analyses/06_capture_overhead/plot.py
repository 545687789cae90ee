"""Draw report.json, and put its numbers as a table where README.md and docs/capture.md mark it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import seaborn
from matplotlib.figure import Figure
from whole_run import BOARD, CAPTURE, NOTHING, SAVE, WATCH, WATCH_OFF, at_frequency

FOLDER = Path(__file__).parent
PAGES = (FOLDER / "README.md", FOLDER.parents[1] / "docs/capture.md")
BEGIN, END = "<!-- overhead: written by plot.py -->\n", "<!-- /overhead -->\n"
MODELS = ("ResNet-20", "transformer")
Lines = list[tuple[str, str, str]]


def lines(report: dict[str, Any]) -> Lines:
    """What was measured, the number, and what was asked."""
    return [*_steps(report), *_stalls(report), *_writing(report), *_whole(report), *_gpu(report)]


def _steps(report: dict[str, Any]) -> Lines:
    asked = {"reduced, 2 parameters": "< 10 µs", "local, 150 parameters": "< 250 µs"}
    asked["reduced, 150 parameters"] = "< 10 µs"
    found = [
        (
            f"a step that is not recorded: {name}",
            f"{case['added']:.1f} ± {case['standard error']:.1f} µs",
            asked[name],
        )
        for name, case in report["off_steps"].items()
        if name in asked
    ]
    tracked = report["tracked"]
    share = f"{tracked['percent']:.2f} % of {tracked['step_ms']:.0f} ms"
    what = f"a tracked step: ResNet-20, {tracked['elements']:,} elements, batch {report['batch']}"
    return [*found, (what, f"{tracked['hook_us']:.0f} µs, {share}", "≤ 3 %")]


def _stalls(report: dict[str, Any]) -> Lines:
    found = []
    for name in MODELS:
        stall = report["stall"][name]
        for when, which in (("spaced", "writer idle"), ("every step", "a row at every step")):
            one = stall[when]
            number = f"{one['row_us'] / 1e3:.2f} ms, {one['ratio']:.2f}×"
            size = f"{stall['elements']:,} elements"
            what = f"stall by a full row next to a flat copy: {name}, {size}, {which}"
            found.append((what, number, "≤ 1.5×"))
    return found


def _writing(report: dict[str, Any]) -> Lines:
    found = []
    for name in MODELS:
        one = report["sustained"][name]
        for way, times in one["times_plain"].items():
            rate = one["megabytes_per_second"][way]
            size = f"rows of {one['row_bytes'] / 1e6:.1f} MB"
            number = f"{rate:.0f} MB/s, {times:.2f}×"
            what = f"writing with fsync next to one plain file: {way}, {size}"
            found.append((what, number, "≥ 0.7×"))
    return found


def slowdowns(report: dict[str, Any]) -> dict[str, float]:
    """Percent by which ResNet-20's training gets slower."""
    ways = report["whole_run"]["ways"]
    found = {CAPTURE: ways[CAPTURE]["slowdown_total"]}
    for name, due in (("watch-style", WATCH), ("TensorBoard", BOARD)):
        if due in ways:
            off = WATCH_OFF if due == WATCH else NOTHING
            for frequency in (1000, 100):
                what = f"{name} histograms, every {frequency} steps"
                found[what] = at_frequency(ways, due, off, frequency)
            found[due] = ways[due]["slowdown_total"]
    return {**found, SAVE: ways[SAVE]["slowdown_total"]}


def _whole(report: dict[str, Any]) -> Lines:
    found, measured = [], report["whole_run"]
    for name, percent in slowdowns(report).items():
        spread = ""
        if name in measured["ways"]:
            low, _, high = measured["ways"][name]["slowdown_blocks"]
            spread = f" (half of the blocks {low:.1f} to {high:.1f})"
        asked = "< 3 %" if name == CAPTURE else ""
        what = f"slowdown of ResNet-20's training: {name}"
        found.append((what, f"{percent:.1f} %{spread}", asked))
    absent = measured["absent"].items()
    return [*found, *((name, f"not measured: {why}", "") for name, why in absent)]


def _gpu(report: dict[str, Any]) -> Lines:
    gpu = report["gpu"]
    what = "on CUDA: stall next to the copy to the host; calls that wait for the device"
    if "absent" in gpu:
        return [(what, f"not measured: {gpu['absent']}", "≤ 1.2×; none")]
    return [
        (
            f"{what}, {name}",
            f"{gpu[name]['ratio']:.2f}×; {', '.join(gpu[name]['calls_that_wait']) or 'none'}",
            "≤ 1.2×; none",
        )
        for name in MODELS
    ]


def table(report: dict[str, Any] | None) -> str:
    """The numbers in Markdown, with the device and the number of threads."""
    if report is None:
        return "Not measured yet: `run.py`, then `plot.py`.\n"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rows = "".join(f"| {' | '.join(each)} |\n" for each in lines(report))
    head = f"{report['device']}, {report['threads']} threads; {versions}; {report['pictures']}."
    return f"{head}\n\n| | measured | limit |\n|---|---|---|\n{rows}"


def filled(page: str, text: str) -> str:
    """The page with other text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    """Write slowdown.png and the tables."""
    report = json.loads((FOLDER / "report.json").read_text())
    for page in PAGES:
        text = page.read_text()
        if BEGIN in text:
            page.write_text(filled(text, table(report)))
    found = slowdowns(report)
    rows = pandas.DataFrame(found.items(), columns=["way", "percent"])
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    ax = figure.subplots()
    seaborn.barplot(rows, x="percent", y="way", ax=ax)
    ax.axvline(3, color="grey", linestyle="--")
    title = f"ResNet-20, batch {report['batch']}, {report['device']}, {report['threads']} threads"
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="slowdown of the training (%)", ylabel="", title=title)
    figure.savefig(FOLDER / "slowdown.png", dpi=110)


if __name__ == "__main__":
    main()
