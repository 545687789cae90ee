"""Figures show the numbers they are given, with few points however long the run."""

import itertools
import math

import numpy as np
import pandas
import pytest
from matplotlib import pyplot

from gradstats import plot
from gradstats.families import DGamma, Laplace, Normal
from gradstats.fitting.compressibility import decay
from gradstats.plot.training import trend
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
def fitted(summary):
    return {family.name: family.fit(summary) for family in (Laplace, DGamma, Normal)}


def replayed(steps):
    rng = np.random.default_rng(1)
    return pandas.DataFrame(
        {
            "method": method,
            "compressor": f"{method}({ratio})",
            "target_ratio": ratio,
            "feedback": "ef",
            "granularity": "model",
            "workers": 1,
            "status": "ok",
            "step": step,
            "khat_over_k": rng.lognormal(sigma=0.1),
            "residual_ratio": 1 + step / 100,
        }
        for method, ratio, step in itertools.product(METHODS, (0.1, 0.01), range(steps))
    )


METHOD_LINES = pandas.DataFrame(
    {
        "method": method,
        "compressor": f"{method}({ratio})",
        "feedback": "none",
        "granularity": "model",
        "exchange_seconds": 0.1,
        "status": "ok",
        "target_ratio": ratio,
        "bits": 64 * ratio,
        "error_compensated": 1 - ratio,
        "encode_over_topk": 0.5 + ratio,
    }
    for method, ratio in itertools.product(METHODS, (0.1, 0.01))
)
EQUAL = pandas.DataFrame(
    {
        "method": method,
        "compressor": f"{method}({bits})",
        "bits": bits,
        "over_topk": 0.5 + bits,
        "topk_error": 0.0 if bits == 9 else 0.3,
        "error": 0.2,
    }
    for method, bits in itertools.product(METHODS, (1, 4, 9))
)
FITS = pandas.DataFrame(
    {
        "step": step,
        "group": "model",
        "family": family,
        "shape": np.nan if family == "laplace" else 0.5 + step / 1000,
        "scale": 1e-3 * (1 + step / 100),
        "target_ratio": ratio,
        "khat_over_k": 2 * ratio if family == "laplace" else 1 + step / 100,
        "status": "ok",
    }
    for step, family, ratio in itertools.product(
        range(0, 700, 100), ("laplace", "dgamma"), (0.1, 0.01)
    )
)
# the family that loses nothing wins: b: t, t; a: t, normal
LOSSES = {("b", 0): 0.0, ("a", 0): 0.0, ("b", 1): 0.0, ("a", 1): 1.0}
BY_PART = pandas.DataFrame(
    {
        "step": step,
        "group": group,
        "family": family,
        "target_ratio": 0.1,
        "khat_over_k": 1.0,
        "shape": 1.0 + 2 * step + (group == "a"),
        "scale": 1.0,
        "n": 1_000,
        "log_likelihood": -1.0,
        "next_log_likelihood_rescaled": -loss if family == "t" else loss - 1.0,
        "status": "ok",
    }
    for (group, step), loss in LOSSES.items()
    for family in ("t", "normal")
)
REUSE = pandas.DataFrame(
    {
        "step": step,
        "group": "model",
        "target_ratio": ratio,
        "threshold": ratio * (1 + step),
        "reusable_steps": step + 1,
        "ended": -1 if step == 5 else 9,
    }
    for step, ratio in itertools.product(range(6), (0.1, 0.01))
)
RANKS = pandas.DataFrame(
    {
        "step": step,
        "parameter": f"w{rank}",
        "module_type": "Linear",
        "stable_rank": rank,
        "full": 10,
        "status": "ok" if rank else "all zero",
    }
    for step, rank in itertools.product(range(3), (1.0, 2.0, 4.0, math.nan))
)
SERIES = pandas.DataFrame(
    {
        "parameter": "w",
        "element": range(5_005),
        "module_type": ["Linear"] * 5_000 + ["Conv2d"] * 5,
        "snr": [*range(5_000), *[1.0] * 5],
        "tail_index": math.nan,
        "autocorrelation": 0.1,
    }
)


@pytest.fixture(scope="module")
def drawings(summary, fitted):
    rows = replayed(30)
    return {
        "density": lambda **ax: plot.density(summary, fitted, **ax),
        "survival": lambda **ax: plot.survival(summary, fitted, **ax),
        "qq": lambda **ax: plot.qq(summary, fitted, **ax),
        "sorted_magnitudes": lambda **ax: plot.sorted_magnitudes(summary, **ax),
        "best_k": lambda **ax: plot.best_k(summary, **ax),
        "tail_error": lambda **ax: plot.tail_error(FITS, **ax),
        "winners": lambda **ax: plot.winners(BY_PART, **ax),
        "heat": lambda **ax: plot.heat(BY_PART, "shape", family="t", **ax),
        "thresholds": lambda **ax: plot.thresholds(REUSE, **ax),
        "reusable": lambda **ax: plot.reusable(REUSE, **ax),
        "ranks": lambda **ax: plot.ranks(RANKS, **ax),
        "over_steps": lambda **ax: plot.over_steps(SERIES, "snr", **ax),
        "estimation": lambda **ax: plot.estimation(rows, **ax),
        "error_against_bytes": lambda **ax: plot.error_against_bytes(METHOD_LINES, **ax),
        "equal_bits": lambda **ax: plot.equal_bits(EQUAL, **ax),
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


NAMES = "density survival qq sorted_magnitudes best_k tail_error".split()
NAMES += "evolution winners heat thresholds reusable ranks over_steps".split()
NAMES += "estimation error_against_bytes equal_bits overhead residuals".split()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
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
    assert sorted(plot.__all__) == sorted(NAMES)
    for name in plot.__all__:
        assert getattr(plot, name).__doc__


def test_densities_are_those_of_the_distributions_and_of_the_magnitudes(summary, fitted, sample):
    ax = plot.density(summary, fitted)
    for name, each in fitted.items():
        x, y = curve(ax, name)
        np.testing.assert_allclose(y, 2 * each.scipy().pdf(x), rtol=1e-9)
    (stairs,) = ax.patches
    heights, edges, _ = stairs.get_data()
    counted, _ = np.histogram(np.abs(sample[sample != 0]), edges)
    expected = counted / np.diff(edges) / np.count_nonzero(sample)
    full = counted > 1_000
    np.testing.assert_allclose(heights[full], expected[full], rtol=0.05)
    assert (heights * np.diff(edges)).sum() == pytest.approx(1, abs=2e-4)


def test_survival_curves_are_those_of_distributions_and_magnitudes(summary, fitted, sample):
    ax = plot.survival(summary, fitted)
    for name, each in fitted.items():
        x, y = curve(ax, name)
        np.testing.assert_allclose(y, 2 * each.scipy().sf(x), rtol=1e-9)
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


def test_equal_bits_leaves_out_where_top_k_sends_everything(drawings):
    ax = drawings["equal_bits"]()
    drawn = [line.get_xydata() for line in ax.lines if len(line.get_xydata()) == 2]
    assert [[1, 1.5], [4, 4.5]] in [points.tolist() for points in drawn]
    assert ax.get_xlim()[1] < 9


def test_overhead_bars_and_error_curves_have_the_heights_of_the_table(drawings):
    heights = {round(bar.get_height(), 6) for bar in drawings["overhead"]().patches}
    assert {0.6, 0.51} <= heights
    drawn = np.concatenate([line.get_ydata() for line in drawings["error_against_bytes"]().lines])
    assert {0.9, 0.99} <= set(np.round(drawn, 6))


def test_quantiles_are_those_of_the_distributions_and_of_the_data(summary, fitted, sample):
    ax = plot.qq(summary, fitted)
    nonzero = np.sort(np.abs(sample[sample != 0]))
    for name, each in fitted.items():
        expected, observed = curve(ax, name)
        shares = 2 * each.scipy().sf(expected)
        np.testing.assert_allclose(shares, np.geomspace(0.99, 2 / len(nonzero), 200), rtol=1e-6)
        places = np.clip(((1 - shares) * len(nonzero)).astype(int), 0, len(nonzero) - 1)
        np.testing.assert_allclose(observed[:-5], nonzero[places][:-5], rtol=0.05)


def test_sorted_magnitudes_and_the_best_k_error_are_those_of_the_sample(summary, sample):
    nonzero = np.sort(np.abs(sample[sample != 0]))[::-1].astype(np.float64)
    ranks, heights = curve(plot.sorted_magnitudes(summary), "captured")
    known = ranks > 20  # one bin a magnitude above
    expected = nonzero[ranks.astype(int) - 1] / nonzero[0]
    large = known & (expected > 1e-4)
    np.testing.assert_allclose(heights[large], expected[large], rtol=0.02)
    slope = decay(summary).exponent
    (line,) = (line for line in plot.sorted_magnitudes(summary).lines if line.get_ls() == "--")
    x, y = np.log(line.get_data())
    assert -(y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(slope)
    ratios, errors = plot.best_k(summary).lines[0].get_data()
    squares = np.append(np.cumsum(nonzero[::-1] ** 2)[::-1], 0.0)
    kept = np.minimum(np.maximum(1, np.round(ratios * len(sample))), len(nonzero)).astype(int)
    np.testing.assert_allclose(errors, np.sqrt(squares[kept] / squares[0]), rtol=0.01, atol=1e-6)


def test_tail_error_shows_the_median_of_every_family(drawings):
    drawn = np.concatenate([line.get_ydata() for line in drawings["tail_error"]().lines])
    for value in (0.2, 0.02, 4.0):
        assert np.isclose(drawn, value).any()


def test_evolution_is_of_shapes_and_of_the_mean_magnitude(drawings):
    ax = drawings["evolution"]()
    steps, relative = curve(ax, "mean |g| / first")
    assert (list(steps), list(relative)) == (
        list(range(0, 700, 100)),
        pytest.approx([*range(1, 8)]),
    )
    _, shapes = curve(ax, "dgamma")
    np.testing.assert_allclose(shapes, trend(steps, 0.5 + steps / 1000))
    assert any(np.allclose(line.get_ydata(), 0.5 + steps / 1000) for line in ax.lines[:1])


def test_maps_have_a_line_a_group_in_the_order_of_the_table(drawings):
    codes = drawings["winners"]().collections[0].get_array().reshape(2, 2)
    assert codes.tolist() == [[0, 0], [0, 1]]  # b: t, t; a: t, normal
    values = drawings["heat"]().collections[0].get_array().reshape(2, 2)
    assert values.tolist() == [[1, 3], [2, 4]]
    rows = BY_PART[BY_PART["family"] == "t"].assign(khat_over_k=[1.0, 2.0, 4.0, 0.0])
    doublings = plot.heat(rows, "khat_over_k").collections[0].get_array().reshape(2, 2)
    assert doublings.tolist() == [[0, 2], [1, -6]]


def test_a_map_of_a_long_run_has_few_columns():
    steps = range(1_000)
    rows = pandas.concat([FITS[:1]] * 1_000).assign(step=steps, shape=[float(s) for s in steps])
    values = plot.heat(rows, "shape").collections[0].get_array().ravel()
    assert len(values) == 60
    assert (values[0], values[-1]) == (0, 999)


def test_thresholds_and_how_long_they_last(drawings):
    dots = drawings["thresholds"]().lines[0].get_ydata()
    assert list(dots) == pytest.approx([0.01 * (1 + step) for step in range(6)])
    ended, held = drawings["reusable"]().lines[:2]
    assert list(ended.get_ydata()) == [1, 2, 3, 4, 5]
    assert list(held.get_ydata()) == [6]


def test_ranks_are_medians_of_what_could_be_ranked(drawings):
    (line,) = (line for line in drawings["ranks"]().lines if len(line.get_ydata()) == 3)
    assert list(line.get_ydata()) == pytest.approx([0.2] * 3)


def test_elements_over_steps_are_drawn_from_quantiles(drawings):
    values, shares = curve(drawings["over_steps"](), "Linear (5,000)")
    np.testing.assert_allclose(values, shares * 4_999)


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
@pytest.mark.slow
def test_odd_gradients_can_be_drawn(values):
    summary = summarize(np.array(values, np.float32))
    for draw in (plot.density, plot.survival, plot.qq):
        draw(summary, {"laplace": Laplace.fit(summary)}).figure.canvas.draw()
    for draw in (plot.sorted_magnitudes, plot.best_k):
        draw(summary).figure.canvas.draw()
