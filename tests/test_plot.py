"""Figures show the numbers they are given, with few points however long the run."""

import itertools

import numpy as np
import pandas
import pytest
from matplotlib import pyplot

from gradstats import plot
from gradstats.families import DGamma, Laplace, Normal
from gradstats.summary import summarize

MOST_POINTS = 4_000
METHODS = ("topk", "dgc", "sidco-e", "bf16")


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def sample():
    values = np.random.default_rng(0).laplace(scale=1e-3, size=300_000).astype(np.float32)
    values[:30_000] = 0
    return values


@pytest.fixture(scope="module")
def summary(sample):
    return summarize(sample)


@pytest.fixture(scope="module")
def laws(summary):
    return {law.name: law.fit(summary) for law in (Laplace, DGamma, Normal)}


def replayed(steps):
    rng = np.random.default_rng(1)
    return pandas.DataFrame(
        {
            "method": method,
            "compressor": f"{method}({ratio})",
            "target_ratio": ratio,
            "feedback": "ef",
            "step": step,
            "khat_over_k": rng.lognormal(sigma=0.1),
            "residual_ratio": 1 + step / 100,
        }
        for method, ratio, step in itertools.product(METHODS, (0.1, 0.01), range(steps))
    )


METHOD_LINES = pandas.DataFrame(
    {
        "method": method,
        "target_ratio": ratio,
        "bits": 64 * ratio,
        "error_compensated": 1 - ratio,
        "encode_over_topk": 0.5 + ratio,
    }
    for method, ratio in itertools.product(METHODS, (0.1, 0.01))
)
FITS = pandas.DataFrame(
    {
        "step": step,
        "group": "model",
        "family": family,
        "shape": np.nan if family == "laplace" else 0.5 + step / 1000,
        "scale": 1e-3 * (1 + step / 100),
        "target_ratio": ratio,
    }
    for step, family, ratio in itertools.product((0, 100, 200), ("laplace", "dgamma"), (0.1, 0.01))
)


@pytest.fixture(scope="module")
def drawings(summary, laws):
    rows = replayed(30)
    return {
        "density": lambda **ax: plot.density(summary, laws, **ax),
        "survival": lambda **ax: plot.survival(summary, laws, **ax),
        "estimation": lambda **ax: plot.estimation(rows, **ax),
        "error_against_bytes": lambda **ax: plot.error_against_bytes(METHOD_LINES, **ax),
        "overhead": lambda **ax: plot.overhead(METHOD_LINES, **ax),
        "evolution": lambda **ax: plot.evolution(FITS, **ax),
        "residuals": lambda **ax: plot.residuals(rows[rows["target_ratio"] == 0.1], **ax),
    }


def curve(ax, label):
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return line.get_data()


def vertices(ax):
    points = sum(len(line.get_xdata()) for line in ax.lines)
    points += sum(len(patch.get_path().vertices) for patch in ax.patches)
    for collection in ax.collections:
        points += max(len(collection.get_offsets()), 1)
        points += sum(len(path.vertices) for path in collection.get_paths())
    return points


NAMES = "density survival estimation error_against_bytes overhead evolution residuals".split()


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_goes_where_it_is_told_or_makes_its_own(drawings, name):
    given = pyplot.figure().subplots()
    assert drawings[name](ax=given) is given
    made = drawings[name]()
    assert made is not given
    for ax in (given, made):
        ax.figure.canvas.draw()
        assert ax.get_title()
        assert ax.get_ylabel()
        assert 0 < vertices(ax) < MOST_POINTS


def test_every_figure_is_tested():
    public = {
        name
        for name, value in vars(plot).items()
        if callable(value) and value.__module__ == plot.__name__ and not name.startswith("_")
    }
    assert public == set(NAMES)


def test_densities_are_those_of_the_laws_and_of_the_magnitudes(summary, laws, sample):
    ax = plot.density(summary, laws)
    for name, law in laws.items():
        x, y = curve(ax, name)
        np.testing.assert_allclose(y, 2 * law.scipy().pdf(x), rtol=1e-9)
    (stairs,) = ax.patches
    heights, edges, _ = stairs.get_data()
    counted, _ = np.histogram(np.abs(sample[sample != 0]), edges)
    expected = counted / np.diff(edges) / np.count_nonzero(sample)
    full = counted > 1_000
    np.testing.assert_allclose(heights[full], expected[full], rtol=0.05)
    assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=2e-4)


def test_survival_curves_are_those_of_the_laws_and_of_the_magnitudes(summary, laws, sample):
    ax = plot.survival(summary, laws)
    for name, law in laws.items():
        x, y = curve(ax, name)
        np.testing.assert_allclose(y, 2 * law.scipy().sf(x), rtol=1e-9)
    magnitudes, shares = curve(ax, "captured")
    nonzero = np.abs(sample[sample != 0])
    counted = np.array([(nonzero > m).mean() for m in magnitudes])
    np.testing.assert_allclose(shares, counted, rtol=0.01, atol=3 / len(nonzero))
    assert shares.min() < 1e-5


def test_estimation_shows_the_median_of_every_method(drawings):
    ax = drawings["estimation"]()
    rows = replayed(30)
    medians = rows.groupby(["target_ratio", "method"])["khat_over_k"].median()
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    for value in medians:
        assert np.isclose(drawn, value).any()
    assert [label.get_text() for label in ax.get_xticklabels()] == list(METHODS)


def test_overhead_bars_and_error_curves_have_the_heights_of_the_table(drawings):
    heights = {round(bar.get_height(), 6) for bar in drawings["overhead"]().patches}
    assert {0.6, 0.51} <= heights
    drawn = np.concatenate([line.get_ydata() for line in drawings["error_against_bytes"]().lines])
    assert {0.9, 0.99} <= set(np.round(drawn, 6))


def test_evolution_is_of_shapes_and_of_the_mean_magnitude(drawings):
    ax = drawings["evolution"]()
    steps, relative = curve(ax, "mean |g| / first")
    assert (list(steps), list(relative)) == ([0, 100, 200], pytest.approx([1, 2, 3]))
    assert any(
        np.allclose(line.get_ydata(), [0.5, 0.6, 0.7])
        for line in ax.lines
        if len(line.get_ydata()) == 3
    )


def test_a_long_run_has_no_more_points_than_a_short_one():
    rows = replayed(5_000)
    ax = plot.residuals(rows[rows["target_ratio"] == 0.1])
    assert vertices(ax) < MOST_POINTS
    longest = max(ax.lines, key=lambda line: len(line.get_xdata()))
    assert longest.get_xdata()[0] == 0
    assert longest.get_xdata()[-1] > 4_900
    for step, ratio in zip(*longest.get_data(), strict=True):
        assert ratio == pytest.approx(1 + step / 100)
    assert vertices(plot.estimation(rows)) < MOST_POINTS


@pytest.mark.parametrize(
    "values",
    [[0.5], [0.5] * 100, [0.5, -0.25], [1e-30, 1e30], [0.0, 2.0]],
    ids=["one element", "constant", "two", "far apart", "a zero"],
)
def test_odd_gradients_can_be_drawn(values):
    summary = summarize(np.array(values, np.float32))
    for draw in (plot.density, plot.survival):
        draw(summary, {"laplace": Laplace.fit(summary)}).figure.canvas.draw()
