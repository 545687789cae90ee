"""Draw report.json: error over Top-k's at equal bits, a panel a run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from gradstats import plot

FOLDER = Path(__file__).parent


def main() -> None:
    """Write equal_bits.png."""
    real = json.loads((FOLDER / "report.json").read_text())["real"]
    figure = Figure(figsize=(6.4, 3.6 * len(real)), layout="constrained")
    for ax, (name, found) in zip(figure.subplots(len(real)), real.items(), strict=True):
        plot.equal_bits(pandas.DataFrame(found["equal_bits"]), ax=ax)
        ax.set(title=f"{name}: error at equal bits")
    figure.savefig(FOLDER / "equal_bits.png", dpi=110)


if __name__ == "__main__":
    main()
