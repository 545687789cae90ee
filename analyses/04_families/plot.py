"""Draw every family's densities and tails, and print the tables of report.json for the docs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gradstats.families import FAMILIES, Family

FOLDER = Path(__file__).parent
PAGES = FOLDER.parents[1] / "docs" / "families"
SHAPES = {
    "dgamma": (0.4, 0.7, 1.0, 2.0),
    "dgenpareto": (-0.3, 0.0, 0.2, 0.5),
    "gennorm": (0.5, 0.8, 1.0, 2.0),
    "dweibull": (0.5, 0.8, 1.0, 2.0),
    "t": (1.0, 2.0, 4.0, 30.0),
    "lognorm": (0.5, 1.0, 1.5, 2.0),
}


def at_equal_medians(law: Family) -> Family:
    """The law whose median magnitude is that of Laplace's law with mean magnitude 1."""
    middle = float(law.threshold(0.5)) / np.log(2)
    return type(law)(**{**law.parameters, "scale": law.parameters["scale"] / middle})


def laws(family: type[Family]) -> dict[str, Family]:
    """By label, the family at some shapes."""
    if family.name not in SHAPES:
        return {family.name: at_equal_medians(family(1.0))}
    return {
        f"{family.name}, shape {shape:g}": at_equal_medians(family(shape, 1.0))
        for shape in SHAPES[family.name]
    }


def draw(family: type[Family]) -> None:
    """Densities and tails at equal medians, beside Laplace's."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    density, tail = figure.subplots(1, 2)
    near, far = np.linspace(0.01, 4, 300), np.geomspace(0.05, 200, 300)
    for label, law in laws(family).items():
        density.plot(near, law.pdf(near), label=label)
        tail.plot(far, law.kept(far))
    if family.name != "laplace":
        laplace = laws(FAMILIES[0])["laplace"]
        density.plot(near, laplace.pdf(near), "k:", lw=1, label="laplace")
        tail.plot(far, laplace.kept(far), "k:", lw=1)
    density.set(xlabel="g", ylabel="density", ylim=(0, 1.2))
    tail.set(xlabel="m", ylabel="P(|G| > m)", xscale="log", yscale="log", ylim=(1e-8, 1.5))
    density.legend(fontsize="small")
    figure.savefig(PAGES / f"{family.name}.png", dpi=100)


def main() -> None:
    """Write docs/families/*.png and print the tables."""
    for family in FAMILIES:
        draw(family)
    report = json.loads((FOLDER / "report.json").read_text())
    for row in report["scipy"]["rows"]:
        gap = max(abs(row["ours"][name] / row["scipy"][name] - 1) for name in row["ours"])
        times = row["scipy_seconds"] / row["seconds"]
        own, other = 1e3 * row["seconds"], 1e3 * row["scipy_seconds"]
        print(f"| `{row['family']}` | {gap:.0e} | {own:.2g} ms | {other:,.0f} ms | {times:,.0f} |")
    for row in report["coverage"]["rows"]:
        name = f"`{row['family']}` {row['parameter']}"
        shown = [f"{row[key]:.3g}" for key in ("truth", "covered", "error_over_scatter")]
        print(f"| {name} | {' | '.join(shown)} | {row['bias_over_scatter']:+.2f} |")


if __name__ == "__main__":
    main()
