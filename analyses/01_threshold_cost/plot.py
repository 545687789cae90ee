"""Draw report.json: speed over torch.topk by size of the gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import seaborn
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent


def main() -> None:
    """Write speed.png."""
    report = json.loads((FOLDER / "report.json").read_text())
    rows = [
        {"elements": int(size), "method": name, "speed": times[f"topk({report['ratio']})"] / value}
        for size, times in report["milliseconds"].items()
        for name, value in times.items()
        if "(" in name
    ]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    ax = figure.subplots()
    seaborn.lineplot(
        pandas.DataFrame(rows), x="elements", y="speed", hue="method", marker="o", ax=ax
    )
    ax.set(xscale="log", yscale="log", ylabel="speed over torch.topk", title=report["device"])
    ax.legend(fontsize="small", ncols=2)
    figure.savefig(FOLDER / "speed.png", dpi=110)


if __name__ == "__main__":
    main()
