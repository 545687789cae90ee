"""Figures of names that no font has letters for, or that matplotlib takes for mathematics."""

import warnings

import numpy as np
import pandas
import pytest
from matplotlib import pyplot

from gradstats import plot
from gradstats.families import Laplace
from gradstats.plot.text import shown
from gradstats.summary import summarize

NAMES = (
    "层.权重",
    "a$b$c",
    "w_1^{2}$",
    "_hidden",
    "two\nlines",
    r"x\y\$z",
    "grad 😀",
    "ẘ.%d",
    "plain",
)


def rows(name):
    return pandas.DataFrame(
        {
            "step": step,
            "group": each if name == "group" else "model",
            "family": each if name in ("group", "family") else "laplace",
            "target_ratio": 0.01,
            "shape": 1.0 + place,
            "scale": 2.0,
            "khat_over_k": 1.0 + place / 10,
            "residual_ratio": 1.0 + place,
            "error_compensated": 0.5,
            "error": 0.5,
            "topk_error": 0.4,
            "over_topk": 1.2,
            "encode_over_topk": 1.0,
            "exchange_seconds": 1.0,
            "compressor": f"topk({place})",
            "granularity": "model",
            "workers": 1,
            "n": 1_000,
            "log_likelihood": -1.0,
            "next_log_likelihood_rescaled": -1.0,
            "parameter": f"w{place}",
            "element": place,
            "tail_index": 2.0,
            "autocorrelation": 0.0,
            "bits": 1.0 + place + step,
            "feedback": "ef",
            "status": "ok",
            "stable_rank": 2.0,
            "full": 10,
            "snr": 1.0 + step,
            "method": "topk",
            "module_type": "Linear",
            name: each,
        }
        for place, each in enumerate(NAMES)
        for step in (0, 1)
    )


def once(name):
    """The rows of one step."""
    return rows(name).query("step == 0")


# a font with few letters; matplotlib warns of it unless numbers are mathematics
CMR10 = {"font.family": ["cmr10"], "axes.formatter.use_mathtext": True}
SAMPLE = summarize(np.random.default_rng(0).laplace(size=2000).astype("float32"))
FITTED = {name: Laplace.fit(SAMPLE) for name in NAMES}
FIGURES = {
    "estimation": lambda: plot.estimation(rows("method")),
    "error_against_bytes": lambda: plot.error_against_bytes(once("method")),
    "equal_bits": lambda: plot.equal_bits(once("method")),
    "overhead": lambda: plot.overhead(once("method")),
    "residuals": lambda: plot.residuals(rows("method")),
    "evolution": lambda: plot.evolution(rows("family")),
    "tail_error": lambda: plot.tail_error(rows("family")),
    "winners": lambda: plot.winners(rows("group")),
    "heat": lambda: plot.heat(rows("group").assign(family="laplace")),
    "ranks": lambda: plot.ranks(rows("module_type")),
    "over_steps": lambda: plot.over_steps(once("module_type")),
    "density": lambda: plot.density(SAMPLE, FITTED),
    "survival": lambda: plot.survival(SAMPLE, FITTED),
    "qq": lambda: plot.qq(SAMPLE, FITTED),
    "best_k": lambda: plot.best_k(SAMPLE),
    "sorted_magnitudes": lambda: plot.sorted_magnitudes(SAMPLE),
}


def texts(ax):
    """What the figure says, as it is drawn."""
    labels = [label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    legend = ax.get_legend()
    labels += [text.get_text() for text in legend.get_texts()] if legend else []
    return {label.replace(r"\$", "$").strip() for label in labels}


SLOW = ("error_against_bytes", "equal_bits", "overhead", "survival", "qq", "sorted_magnitudes")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FIGURES]
)
def test_no_name_makes_a_figure_warn_and_every_name_is_in_it(name):
    with pyplot.rc_context(CMR10), warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = FIGURES[name]()
        ax.figure.canvas.draw()
        labels = texts(ax)
        expected = () if name in ("best_k", "sorted_magnitudes") else NAMES
        for each in expected:
            text = shown(each).replace(r"\$", "$").strip()
            assert any(label.startswith(text) for label in labels), text
    pyplot.close("all")


@pytest.mark.parametrize("font", [["sans-serif"], ["STIXGeneral", "serif"]])
def test_a_figure_is_saved_in_every_format_and_font_without_a_warning(font, tmp_path):
    with pyplot.rc_context({"font.family": font}), warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = plot.tail_error(rows("family"))
        for suffix in ("png", "pdf", "svg"):
            ax.figure.savefig(tmp_path / f"figure.{suffix}")
    pyplot.close("all")


def test_axes_that_were_there_before_get_the_letters_too():
    with pyplot.rc_context(CMR10), warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (
            lambda ax: plot.heat(rows("group").assign(family="laplace"), "khat_over_k", ax),
            lambda ax: plot.tail_error(rows("family"), ax=ax),
        ):
            draw(pyplot.subplots(layout="constrained")[1]).figure.canvas.draw()
    pyplot.close("all")


def test_a_name_is_itself_but_for_letters_that_no_font_has():
    with pyplot.rc_context(CMR10):
        assert shown("layers[0].w_1") == "layers[0].w_1"
        assert shown("a$b$c") == r"a\$b\$c"
        assert shown("层") == r"\u5c42"
        assert shown("two\nlines") == r"two\u000alines"
        assert shown("_x") == " _x"
        assert shown("k̂ ‖e‖ ẘ") == "k̂ ‖e‖ ẘ"
