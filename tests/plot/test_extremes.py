"""Figures of numbers at the ends of float64: drawn, or saying why not, without a warning."""

from functools import partial

import numpy as np
import pytest

import gradstats
from gradstats import plot, summarize
from gradstats.families import FAMILIES, FitError
from gradstats.reporting.drawing import draw
from gradstats.runs.importing import import_gradients

DRAWS = np.random.default_rng(0).laplace(size=2_000)
EXTREMES = {
    "one element at the end of the range": np.r_[DRAWS, 1.7e308],
    "squares overflow": 1e200 * DRAWS,
    "squares underflow": 1e-200 * DRAWS,
    "subnormal": 1e-315 * DRAWS,
    "both ends": np.r_[1e300 * DRAWS, 1e-300 * DRAWS],
}
OF_LAWS = (plot.density, plot.survival, plot.qq)
OF_ONE = (plot.sorted_magnitudes, plot.best_k)


def fitted(summary):
    for family in FAMILIES:
        try:
            yield family.name, family.fit(summary)
        except FitError:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTREMES)
def test_figures_of_extreme_gradients(name, tmp_path):
    summary = summarize(EXTREMES[name])
    laws = dict(fitted(summary))
    assert laws
    for figure in OF_LAWS:
        assert draw("f", partial(figure, summary, laws), tmp_path).startswith(b"\x89PNG")
    for figure in OF_ONE:
        assert draw("f", partial(figure, summary), tmp_path).startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_says_so(tmp_path):
    def broken(ax):
        ax.plot([0, 1])
        raise OverflowError("too far")

    blank = draw("f", lambda ax: None, tmp_path)
    assert draw("f", broken, tmp_path) != blank
    assert (tmp_path / "f.pdf").stat().st_size
    with pytest.raises(KeyError):  # an error of ours is not hidden
        draw("f", lambda ax: {}["x"], tmp_path)


@pytest.mark.slow
def test_one_element_at_the_end_of_the_range_does_not_cost_the_report(tmp_path):
    files = []
    for step in range(2):
        files.append(tmp_path / f"grad_{step}.npy")
        np.save(files[-1], np.r_[np.roll(DRAWS, step), 1.7e308])
    import_gradients(files, tmp_path / "run.zarr").close()
    run = gradstats.open(tmp_path / "run.zarr")
    page = gradstats.report(run, ratios=[0.01], compressors=["topk", "qsgd(bits=4)"])
    assert "Double generalized Pareto" in page.read_text() or "dgenpareto" in page.read_text()
