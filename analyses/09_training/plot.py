"""Draw report.json: loss against steps and against bytes, a row of panels a number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import seaborn
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
LEFT_OUT = (
    "plain DDP",
    "dense, another seed",
    "Top-k",
    "Top-k, 5 %",
    "SIDCo-E, 5 %",
    "two-shot MXFP8, memory",
    "two-shot NVFP4, memory",
)


def main() -> None:
    """Write loss.png."""
    report = json.loads((FOLDER / "report.json").read_text())
    figure = Figure(figsize=(11, 4.2 * len(report["workers"])), layout="constrained")
    axes = figure.subplots(len(report["workers"]), 2, squeeze=False, sharey=True)
    for (left, right), (workers, found) in zip(axes, report["workers"].items(), strict=True):
        points = pandas.DataFrame(
            [
                {**row, "method": name, "megabytes": row["wire"] / 1e6}
                for name, method in found["methods"].items()
                if name not in LEFT_OUT
                for row in method["rows"]
            ]
        )
        for ax, x in ((left, "step"), (right, "megabytes")):
            seaborn.lineplot(
                points, x=x, y="loss", hue="method", style="method", ax=ax, legend=ax is left
            )
            ax.set(ylabel=f"training loss, mean over {report['bin']} steps")
        left.set(title=f"{workers} workers")
        right.set(xscale="log", xlabel="megabytes that a worker sends on a ring, so far")
        left.legend(fontsize="small", title=None, ncols=2)
    figure.savefig(FOLDER / "loss.png", dpi=110)


if __name__ == "__main__":
    main()
