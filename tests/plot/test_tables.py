"""Every figure takes what one public verb returns, and answers everything else in words."""

import inspect
import itertools
import re
import warnings

import pandas
import pytest
import torch
from matplotlib import pyplot

import gradstats
from gradstats import plot

# figure -> the verb that makes what it takes
VERBS = {
    "density": "summarize",
    "survival": "summarize",
    "qq": "summarize",
    "sorted_magnitudes": "summarize",
    "best_k": "summarize",
    "tail_error": "fit",
    "evolution": "fit",
    "heat": "fit",
    "winners": "fit",
    "thresholds": "threshold_reuse",
    "reusable": "threshold_reuse",
    "ranks": "ranks",
    "over_steps": "series",
    "estimation": "replay",
    "residuals": "replay",
    "error_against_bytes": "methods",
    "equal_bits": "equal_bits",
    "overhead": "timings",
}
OF_TABLES = [name for name, verb in VERBS.items() if verb != "summarize"]
OTHER_TABLES = ("sidco_thresholds", "structure", "best_distribution", "factorised_rows")
SUMMARY = gradstats.summarize(torch.randn(2_000, generator=torch.Generator().manual_seed(0)))
NORMAL = gradstats.families.Normal.fit(SUMMARY)
KEYS = {"step", "target_ratio", "workers", "element"}  # numbers that name a row


@pytest.fixture(scope="module")
def tables(small_run):
    """What every public verb returns, by its name."""
    run = gradstats.open(small_run, steps=(0, 24, 1))
    replayed = gradstats.replay(run, ["topk", "qsgd(4)"], ratios=[0.1, 0.02], feedback="ef")
    timings = gradstats.timings(run, ["topk", "bf16"], ratios=0.1)
    fits = gradstats.fit(run, kind="track", families=["laplace", "gennorm"], ratios=0.1, stride=5)
    return {
        "fit": fits,
        "threshold_reuse": gradstats.threshold_reuse(run, kind="track", ratios=[0.1, 0.02]),
        "sidco_thresholds": gradstats.sidco_thresholds(run, ratios=0.1),
        "structure": gradstats.structure(run, ratios=0.1),
        "ranks": gradstats.ranks(run),
        "series": gradstats.series(run),
        "best_distribution": gradstats.best_distribution(fits),
        "replay": replayed,
        "timings": timings,
        "methods": gradstats.methods(replayed, timings),
        "equal_bits": gradstats.equal_bits(run.read(0), ["topk", "sign"], ratios=[0.1, 0.02]),
        "factorised_rows": gradstats.factorised_rows(run, most_rows=1),
    }


def drawn(name, given, **settings):
    """The figure, of a Summary with a distribution where it wants one."""
    function = getattr(plot, name)
    more = (NORMAL,) if "distributions" in inspect.signature(function).parameters else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = function(given, *more, **settings)
    assert ax.get_title()
    return ax


def test_every_figure_names_its_verb_and_shows_it():
    assert sorted(VERBS) == sorted(plot.__all__)
    for name, verb in VERBS.items():
        text = inspect.getdoc(getattr(plot, name))
        arguments, example = text.split("Args:")[1].split("Example:")
        assert f"`gradstats.{verb}`" in arguments, name
        assert f"gradstats.{verb}(" in example, name
        assert f"gradstats.plot.{name}(" in example
        assert callable(getattr(gradstats, verb))


@pytest.mark.parametrize("name", VERBS)
def test_a_figure_draws_what_its_verb_returns(tables, name):
    given = SUMMARY if VERBS[name] == "summarize" else tables[VERBS[name]]
    before = given.copy() if name in OF_TABLES else None
    own = drawn(name, given)
    own.figure.canvas.draw()
    other = pyplot.figure().subplots()
    assert drawn(name, given, ax=other) is other
    assert own is not other
    if before is not None:
        pandas.testing.assert_frame_equal(given, before)  # it was not written


@pytest.mark.parametrize("name", OF_TABLES)
def test_a_list_of_rows_is_a_table(tables, name):
    table = tables[VERBS[name]]
    by_rows = drawn(name, table.to_dict("records"))
    by_table = drawn(name, table)
    assert points(by_rows) == points(by_table)


def points(ax):
    lines = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata())]
    return str(lines)  # NaN is NaN


def wrong_pairs():
    verbs = [*dict.fromkeys(VERBS.values()), *OTHER_TABLES]
    for name, verb in itertools.product(VERBS, verbs):
        if verb not in (VERBS[name], "summarize"):
            yield name, verb


@pytest.mark.parametrize(("name", "verb"), list(wrong_pairs()))
def test_the_table_of_another_verb_is_refused_in_words(tables, name, verb):
    with pytest.raises(ValueError, match=rf"as gradstats\.{VERBS[name]} returns") as error:
        drawn(name, tables[verb])
    message = str(error.value)
    assert message.startswith(next(iter(inspect.signature(getattr(plot, name)).parameters)))
    if name in OF_TABLES:
        missing = re.search(r"got a table without (.*)$", message)[1].split(", ")
        assert set(missing) <= set(
            re.search(r"columns (.*), as gradstats", message)[1].split(", ")
        )
        assert set(missing) & set(tables[VERBS[name]]) == set(missing)
        assert not set(missing) & set(tables[verb])
    assert not pyplot.get_fignums(), "nothing was drawn"


@pytest.mark.parametrize("given", [None, 3, "fits", [1, 2], {"step": 1}, SUMMARY], ids=repr)
@pytest.mark.parametrize("name", OF_TABLES)
def test_what_is_no_table_is_refused_in_words(name, given):
    with pytest.raises(ValueError, match=rf"must have the columns .*gradstats\.{VERBS[name]} "):
        getattr(plot, name)(given)


@pytest.mark.parametrize("name", OF_TABLES)
def test_a_table_without_rows_is_refused_in_words(tables, name):
    table = tables[VERBS[name]]
    for empty in (table[:0], pandas.DataFrame(), []):
        with pytest.raises(ValueError, match=rf"must have a row, as gradstats\.{VERBS[name]} "):
            getattr(plot, name)(empty)


OF_STATUS = [name for name in OF_TABLES if VERBS[name] in ("fit", "replay", "methods", "ranks")]


@pytest.mark.parametrize("name", OF_STATUS)
def test_failed_rows_are_left_out_and_nothing_but_them_is_refused(tables, name):
    table = tables[VERBS[name]]
    failed = table.assign(status="cannot fit this: it is broken")
    with pytest.raises(ValueError, match="must have a row with status ok, got 'cannot fit this"):
        getattr(plot, name)(failed)
    key = next(each for each in ("compressor", "family", "parameter") if each in table)
    some = table[key] == table[key].iloc[0]
    numbers = table.select_dtypes("float").columns.difference(["target_ratio"])
    damaged = table.copy()
    damaged.loc[some, "status"] = "broken"
    damaged.loc[some, numbers] = float("nan")
    assert points(drawn(name, damaged)) == points(drawn(name, table[~some]))


@pytest.mark.parametrize("name", ["tail_error", "evolution", "thresholds", "reusable"])
def test_several_groups_are_refused_with_the_remedy(tables, name):
    table = tables[VERBS[name]]
    both = pandas.concat([table, table.assign(group="head")])
    argument = "fits" if VERBS[name] == "fit" else "reuse"
    with pytest.raises(ValueError, match="must be of one group, got 2") as error:
        getattr(plot, name)(both)
    remedy = str(error.value).partition("select one: ")[2]
    assert points(drawn(name, eval(remedy, {argument: both}))) == points(drawn(name, table))


@pytest.mark.parametrize("name", OF_TABLES)
def test_joined_tables_of_two_workers_or_runs_are_refused(tables, name):
    """Their rows have the same names; a median over both would be of neither."""
    table = tables[VERBS[name]]
    other = table.assign(**{each: 1.5 * table[each] for each in table.select_dtypes("float")})
    for key in KEYS.intersection(table):
        other[key] = table[key]
    with pytest.raises(ValueError, match=r"must have one row per .*, got [\d,]+ more, first for"):
        getattr(plot, name)(pandas.concat([table, other]))


@pytest.mark.parametrize("name", OF_TABLES)
def test_what_was_asked_for_twice_is_drawn_once(tables, name):
    table = tables[VERBS[name]]
    assert points(drawn(name, pandas.concat([table, table]))) == points(drawn(name, table))


@pytest.mark.parametrize("name", ["tail_error", "evolution", "heat", "winners"])
def test_fits_of_two_estimators_are_refused(tables, name):
    both = pandas.concat([tables["fit"], tables["fit"].assign(method="moments")])
    with pytest.raises(ValueError, match=r"fits must be of one method, got 2 \(mle, moments\)"):
        getattr(plot, name)(both)


def ticks(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


@pytest.fixture(scope="module")
def mixed(small_run):
    run = gradstats.open(small_run, steps=(0, 24, 1))
    return gradstats.replay(
        run,
        ["topk", "lowpass(topk)"],
        ratios=[0.1, 0.02],
        feedback=["none", "ef"],
        granularity=["model", "parameter"],
    )


def test_rows_of_several_settings_are_told_apart(mixed):
    ax = drawn("estimation", mixed)
    assert sorted(ticks(ax)) == sorted(
        f"topk{memory}{part}"
        for memory in ("", ", ef", ", lowpass")
        for part in ("", ", per parameter")
    )
    assert ax.get_title() == "Elements sent divided by elements asked for"
    medians = mixed.groupby(["feedback", "granularity", "target_ratio"])["khat_over_k"].median()
    heights = [y for line in ax.lines for y in line.get_ydata()]
    for value in medians:
        assert any(abs(height - value) < 1e-9 for height in heights)


@pytest.mark.parametrize(
    ("feedback", "words"),
    [
        ("none", ", without feedback"),
        ("ef", ", with error feedback"),
        ("lowpass", ", with lowpass"),
    ],
)
def test_a_title_says_what_all_rows_have_in_common(mixed, feedback, words):
    rows = mixed[(mixed["feedback"] == feedback) & (mixed["granularity"] == "model")]
    assert drawn("estimation", rows).get_title().endswith(f"asked for{words}")
    assert ticks(drawn("estimation", rows)) == ["topk"]


def test_workers_and_dense_rules_are_told_apart(mixed):
    rows = mixed[(mixed["feedback"] == "none") & (mixed["granularity"] == "model")]
    both = pandas.concat([rows, rows.assign(workers=2)])
    assert ticks(drawn("estimation", both)) == ["topk", "topk, 2 workers"]
    both = pandas.concat([rows.assign(dense="below 7"), rows.assign(dense="below 9")])
    assert ticks(drawn("estimation", both)) == ["topk, below 7", "topk, below 9"]


def test_settings_of_one_method_are_told_apart_by_their_spec(small_run):
    run = gradstats.open(small_run)
    specs = ["topk(0.1)", "sidco-e(0.1)", "sidco-e(0.1, stages=2)"]
    labels = set(ticks(drawn("estimation", gradstats.replay(run, specs))))
    assert labels == {"topk", "sidco-e(0.1)", "sidco-e(0.1, stages=2)"}


def names_of(ax):
    return sorted(text.get_text() for text in ax.get_legend().get_texts())


def test_residuals_of_several_ratios_and_memories_are_lines_of_their_own(mixed):
    whole = mixed[mixed["granularity"] == "model"]
    ax = drawn("residuals", whole)
    expected = {
        f"topk({ratio}), {memory}": rows["residual_ratio"].tolist()
        for (ratio, memory), rows in whole[whole["feedback"] != "none"].groupby(
            ["target_ratio", "feedback"]
        )
    }
    assert names_of(ax) == sorted(expected)
    lines = [list(line.get_ydata()) for line in ax.lines if len(line.get_ydata())]
    assert sorted(lines) == sorted(expected.values())


def test_errors_of_both_feedbacks_are_lines_of_their_own(mixed):
    lines = drawn("error_against_bytes", gradstats.methods(mixed))
    assert len(names_of(lines)) == 6
    assert "topk, ef, per parameter" in names_of(lines)
    one = gradstats.methods(mixed[mixed["feedback"] == "none"])
    title = drawn("error_against_bytes", one).get_title()
    assert title == "Error against bytes sent, without feedback"


def test_overhead_has_bars_for_both_feedbacks(tables):
    ax = drawn("overhead", tables["timings"])
    assert set(ticks(ax)) == {"topk", "topk, ef", "bf16", "bf16, ef"}
    assert len(tables["timings"]) == 4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("estimation", {"target_ratio": float("nan")}, "must have a method with a target ratio"),
        ("residuals", {"residual_ratio": 0.0}, 'above 0, got none; replay with feedback="ef"'),
        ("error_against_bytes", {"error_compensated": 0.0}, "must have an error above 0"),
        ("equal_bits", {"topk_error": 0.0}, "must have errors above 0"),
        ("overhead", {"encode_over_topk": float("nan")}, 'must have times of "topk"'),
        ("over_steps", {"snr": float("nan")}, "must have a number in snr, got NaN in 2,000 rows"),
    ],
)
def test_a_table_with_nothing_to_draw_is_refused_in_words(tables, name, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(plot, name)(tables[VERBS[name]].assign(**change))


def test_a_map_is_of_the_best_family_at_the_smallest_ratio_unless_told(tables):
    fits = pandas.concat([tables["fit"], tables["fit"].assign(target_ratio=0.02, khat_over_k=4.0)])
    best = gradstats.best_distribution(fits)["family"].iloc[0]
    ax = drawn("heat", fits)
    assert ax.get_title() == f"log2(k̂/k) of {best} at ratio 0.02, by group and step"
    assert set(ax.collections[0].get_array().ravel()) == {2.0}
    assert (
        "of laplace at ratio 0.1,"
        in drawn("heat", fits, family="laplace", target_ratio=0.1).get_title()
    )
    assert drawn("heat", fits, value="shape").get_title() == "shape of gennorm, by group and step"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value": "shap"}, "value must be one of n, zeros, nonfinite, mean, .*, got 'shap'"),
        ({"value": "family"}, "value must be one of n, zeros, .*, got 'family'"),
        ({"family": "t"}, "family must be one of laplace, gennorm, got 't'"),
        ({"value": "shape", "family": "laplace"}, "family must be one of gennorm, got 'laplace'"),
        ({"target_ratio": 0.5}, r"target_ratio must be one of 0\.1, got 0\.5"),
        ({"value": "bootstrap_p"}, "fits must have a number in bootstrap_p, got NaN in 10 rows"),
    ],
)
def test_what_a_map_cannot_draw_is_named(tables, settings, message):
    with pytest.raises(ValueError, match=message):
        plot.heat(tables["fit"], **settings)


@pytest.mark.parametrize("name", ["density", "survival", "qq"])
def test_distributions_are_one_or_several_or_named(name):
    laplace = gradstats.families.Laplace.fit(SUMMARY)
    figure = getattr(plot, name)
    assert "normal" in legend_of(figure(SUMMARY, NORMAL))
    assert {"normal", "laplace"} <= legend_of(figure(SUMMARY, [NORMAL, laplace]))
    assert {"normal 1", "normal 2", "laplace"} <= legend_of(
        figure(SUMMARY, (each for each in (NORMAL, NORMAL, laplace)))
    )
    assert {"a_$b$"} <= legend_of(figure(SUMMARY, distributions={"a_$b$": NORMAL}))
    figure(SUMMARY, [])  # the captured magnitudes alone


def legend_of(ax):
    legend = ax.get_legend()
    return {text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()}


@pytest.mark.parametrize("given", ["laplace", gradstats.families.Laplace, [None], {"a": 3}, 7])
@pytest.mark.parametrize("name", ["density", "survival", "qq"])
def test_what_is_no_fitted_distribution_is_refused_in_words(name, given):
    with pytest.raises(ValueError, match="distributions must be fitted ones, such as families"):
        getattr(plot, name)(SUMMARY, given)


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb == "summarize"])
def test_a_gradient_of_zeros_is_refused_in_words(name):
    with pytest.raises(ValueError, match="summary must have a non-zero element, got none of 9"):
        drawn(name, gradstats.summarize(torch.zeros(9)))


def test_no_title_says_law(tables):
    for name, verb in VERBS.items():
        ax = drawn(name, SUMMARY if verb == "summarize" else tables[verb])
        assert "law" not in (ax.get_title() + ax.get_xlabel() + ax.get_ylabel()).lower()
