"""Draw report.json: loss and accuracy by steps, bytes, seconds; parts of a step; ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import seaborn
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
PARTS = ("compute", "encode", "communicate", "decode", "other")
AXES = {
    "step": "step",
    "megabytes": "megabytes that a worker sends on a ring, so far",
    "seconds": "seconds so far, two processes on one machine",
}


def training(report: dict[str, Any], measure: str = "held_out_loss") -> Figure:
    """Held-out loss or accuracy against three things, a row of panels a task."""
    figure = Figure(figsize=(14, 4.2 * len(report["tasks"])), layout="constrained")
    axes = figure.subplots(len(report["tasks"]), 3, squeeze=False)
    for row, (task, found) in zip(axes, report["tasks"].items(), strict=True):
        points = pandas.DataFrame(
            [
                {**point, "method": name, "megabytes": point["wire"] / 1e6}
                for name, method in found["methods"].items()
                for point in method["rows"]
            ]
        )
        highest = 1.3 * found["methods"]["dense"]["rows"][1]["held_out_loss"]
        for ax, (x, label) in zip(row, AXES.items(), strict=True):
            seaborn.lineplot(
                points,
                x=x,
                y=measure,
                hue="method",
                style="method",
                markers=True,
                ax=ax,
                legend=x == "step",
            )
            ax.set(title=task, xlabel=label, ylabel=measure.replace("_", " "))
            if measure == "held_out_loss":
                ax.set_ylim(0.97 * points[measure].min(), highest)
        row[1].set(xscale="log")
        row[0].legend(title=None, fontsize="small")
    return figure


def parts(report: dict[str, Any]) -> Figure:
    """Milliseconds of the parts of a step, a bar a method."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(report["tasks"]), squeeze=False)[0]
    for ax, (task, found) in zip(axes, report["tasks"].items(), strict=True):
        table = pandas.DataFrame(
            {name: method["milliseconds"] for name, method in found["methods"].items()}
        ).T
        table[list(PARTS)].plot.barh(stacked=True, ax=ax, legend=ax is axes[0])
        ax.invert_yaxis()
        ax.set(title=task, xlabel="milliseconds a step, two processes on one machine")
    return figure


def ranks(report: dict[str, Any]) -> Figure:
    """Stable and entropy rank over full rank, of gradients and weights, median over matrices."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(report["tasks"]), squeeze=False)[0]
    for ax, (task, found) in zip(axes, report["tasks"].items(), strict=True):
        lines = [
            {
                "step": row["step"],
                "of": f"{quantity}, {kind.replace('_', ' ')}",
                "share": row[kind],
            }
            for quantity in ("grad", "weight")
            for row in found[f"{quantity}_ranks"]
            for kind in ("stable_rank", "entropy_rank")
        ]
        seaborn.lineplot(
            pandas.DataFrame(lines),
            x="step",
            y="share",
            hue="of",
            estimator="median",
            errorbar=("pi", 80),
            ax=ax,
        )
        ax.set(title=task, ylabel="effective rank over full rank", ylim=(0, 1))
        ax.legend(title=None, fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure


def main() -> None:
    """Write training.png, accuracy.png, parts.png and ranks.png."""
    report = json.loads((FOLDER / "report.json").read_text())
    training(report, "accuracy").savefig(FOLDER / "accuracy.png", dpi=110)
    for draw in (training, parts, ranks):
        draw(report).savefig(FOLDER / f"{draw.__name__}.png", dpi=110)


if __name__ == "__main__":
    main()
