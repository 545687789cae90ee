"""One figure → its files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradstats import extras

Drawing = tuple[str, str, Callable[..., Any]]  # name, caption, draw(ax=)
SIZE = (6.4, 4.0)  # inches
DPI = 110


def draw(name: str, drawing: Callable[..., Any], folder: Path) -> bytes:
    """Draw one figure, write it as PNG and PDF, and return the PNG.

    The canvases are called themselves: `savefig` draws everything twice for each file. Numbers
    that no axis can hold, such as 1.7e308, give a figure that says so.
    """
    agg, pdf = (extras.load(f"matplotlib.backends.backend_{each}") for each in ("agg", "pdf"))
    figure_class = extras.load("matplotlib.figure").Figure
    figure = figure_class(SIZE, DPI, layout="constrained")
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            drawing(ax=figure.subplots())
            agg.FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
    except (ArithmeticError, ValueError) as error:
        figure = figure_class(SIZE, DPI, layout="constrained")
        figure.text(0.5, 0.5, f"cannot draw {name}:\n{error}", ha="center", wrap=True)
        agg.FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
    figure.set_layout_engine("none")  # it is laid out
    pdf.FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf")
    return (folder / f"{name}.png").read_bytes()
