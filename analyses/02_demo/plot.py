"""Draw report.json: how far each SIDCo variant misses its target, with and without feedback."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import seaborn
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent


def main() -> None:
    """Write sidco.png."""
    rows = pandas.DataFrame(json.loads((FOLDER / "report.json").read_text())["methods"])
    whole = rows[rows["compressor"].str.startswith("sidco") & (rows["granularity"] == "model")]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = figure.subplots()
    seaborn.barplot(whole, x="compressor", y="miss", hue="feedback", ax=ax)
    ax.set(xlabel="", ylabel="median |ln((k̂+½)/(k+½))|", title="SIDCo on the demo's gradients")
    ax.tick_params(axis="x", rotation=30)
    figure.savefig(FOLDER / "sidco.png", dpi=110)


if __name__ == "__main__":
    main()
