"""From a run to its report: computes what is missing, in a budget, and leaves the store alone."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from gradstats import extras
from gradstats.compressors import compressor
from gradstats.families import FAMILIES, Family, family, spec_of
from gradstats.fitting.over_steps import RANKS, SERIES, WEIGHT_RANKS, RankSettings
from gradstats.fitting.resumable import fits
from gradstats.fitting.settings import FitSettings
from gradstats.ratios import DenseRule
from gradstats.replaying.batches import Replaying, asked
from gradstats.replaying.planning import Job
from gradstats.replaying.resumable import (
    EQUAL_BITS,
    FACTORISED,
    METHODS,
    REPLAY,
    TIMINGS,
    EqualBitsSettings,
    FactorisedSettings,
    MethodSettings,
    nothing_replayed,
    timings_of,
)
from gradstats.replaying.settings import FEEDBACKS, GRANULARITIES, ReplaySettings
from gradstats.reporting.drawing import draw
from gradstats.reporting.facts import facts, keep_last, read_last
from gradstats.reporting.front_page import front_page
from gradstats.reporting.page import Section, render
from gradstats.reporting.sections import sections
from gradstats.reporting.settings import ReportKeywords, ReportSettings
from gradstats.runs.opening import opened
from gradstats.runs.parts import replacing, writing
from gradstats.runs.results import Progress, Results, read_json, results_folder, write_json
from gradstats.runs.run import Run
from gradstats.settings import from_keywords, in_words, lists_settings

Row = dict[str, Any]
Table = Any
FIT_SHARE = 0.2  # of the budget, for the distributions of compensated gradients
MOST_FITTED_ROWS = 16  # compensated ones
MOST_RANKED_ROWS = 8
COMPENSATED = "topk(0.01)"
CONTENT = "report.json"  # what the page needs beside the tables


@lists_settings(ReportSettings, ReportKeywords)
def report(
    run: Run | str | PathLike[str],
    *,
    out: str | Path | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ReportKeywords],
) -> Path:
    """Fit, time and replay what is missing, then write the report.

    What `gradstats fit`, `gradstats replay` or an earlier report has computed is not computed
    again; see `render_folder` for the page alone.

    Args:
        run: an open run, or its path or URL.
        out: folder to write; default `RUN.results` beside the run.
        executor: any `concurrent.futures.Executor` of processes on this machine, in which rows
            are fitted and compressors replayed; default: here. The results are the same.
        progress: called with (stage, done, of how many).
        **settings: fields of `gradstats.reporting.settings.ReportSettings`: budget (seconds after
            which no further replay begins), by (groups of the second table of distributions),
            families (names or classes, see `gradstats.fit`), ratios (target ratios, each in
            (0, 1]), compressors (specs or instances), network (that exchanges are projected on),
            factorised (a captured run of the same model in factors) and seed (of the random
            methods).

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the run has no row, a loss scale is not known, or a setting is out of range.
        TypeError: an unknown setting.
        ImportError: a package of gradstats[analysis] is missing.
    """
    chosen = from_keywords(ReportSettings, settings, verb="report")
    folder = Path(out) if out else None
    return report_into(opened(run), chosen, folder, executor=executor, progress=progress)


def report_into(
    run: Run,
    settings: ReportSettings,
    folder: Path | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Path:
    """As `report`, of settings that are one value; returns the path of `report.html`."""
    for module in ("pandas", "pyarrow", "seaborn", "jinja2"):
        extras.load(module)  # what is missing is said before the work
    deadline = time.monotonic() + settings.budget
    run.check(run.fitted_kind)
    results = Results(run, folder or results_folder(run), progress, executor)
    with results.resumable():
        _compute(results, settings, deadline)
        results.stage("draw")(0, 1)
        return render_folder(results.folder)


def _compute(results: Results, settings: ReportSettings, deadline: float) -> None:
    """Make every table, and what the page needs beside them."""
    run = results.opened
    names = _fit(results, settings)
    names |= _fit_more(results, settings)
    replaying = Replaying(_replay_settings(settings), _telling, deadline)
    names |= _replay(results, replaying)
    words = in_words({**vars(settings), "dense": DenseRule(), "network": None})
    network = asdict(settings.network)
    results.remember("report", {**words, "network": network})
    content = {
        "identity": results.identity,
        "settings": {**results.identity, **words, "network": network},
        "facts": facts(run, results.identity["device"]),
        "skipped": results.skipped,
        "keys": replaying.keys(run) if "equal_bits" in names else [],
        "compressors": words["compressors"],
        "families": [spec_of(each, FAMILIES) for each in settings.families],
        "tables": {name: [file, results.key_of(file)] for name, file in names.items()},
    }
    write_json(results.folder / CONTENT, content)


def render_folder(folder: str | Path) -> Path:
    """Write the page of a folder of results again; the run's store need not be there.

    Args:
        folder: `RUN.results`, in which `report` has been.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: there has been no report, or a table of it was made anew with other settings.
    """
    folder = Path(folder)
    content = read_json(folder / CONTENT)
    if not content:
        raise ValueError(
            f"cannot render {folder}: it has no {CONTENT}; run gradstats report first"
        )
    results = Results(None, folder)
    results.identity = content["identity"]
    tables = _tables(results, content)
    every = sections(read_last(folder), tables, _importable(content.get("families")))
    drawn = _drawn(folder, every)
    path = folder / "report.html"
    with replacing(path) as new:
        new.write_text(render(front_page(content, tables, drawn)), encoding="utf-8")
    return path


def _tables(results: Results, content: Row) -> dict[str, Table]:
    """The tables of the page, by the names that its sections know."""
    for name, (file, key) in content["tables"].items():
        if results.key_of(file) != key:
            fact = f"its table {file} (for {name}) is gone, or was made with other settings"
            remedy = "run gradstats report RUN again"
            raise ValueError(f"cannot render {results.folder}: {fact}; {remedy}")
    tables = {name: results.read(file) for name, (file, _) in content["tables"].items()}
    settings, keys = content["settings"], content["keys"]
    results.ensure(METHODS, MethodSettings(keys, settings["network"]))
    chosen = ReplaySettings(tuple(content["compressors"]), tuple(settings["ratios"]))
    return {
        **tables,
        "replay": asked(tables["replay"], keys),
        "timings": timings_of(results, chosen),
        "methods": results.read("methods"),
    }


def _fit(results: Results, settings: ReportSettings) -> dict[str, str]:
    """Keep the tables of distributions and thresholds; returns the files by name."""
    model = FitSettings(families=settings.families, ratios=settings.ratios)
    parts = replace(model, by=settings.by)
    for each in (model, parts):
        results.ensure(fits(each.suffix), each)
    keep_last(results)
    return {
        **{name: name for name in ("fits", "thresholds", "reuse")},
        "fits_by_part": f"fits{parts.suffix}",
        "structure": f"structure{parts.suffix}",
    }


def _fit_more(results: Results, settings: ReportSettings) -> dict[str, str]:
    """Keep tables of ranks, low rank, elements over the steps, and compensated gradients."""
    run, names = results.opened, ["ranks"]
    results.ensure(RANKS, _rank_settings(results))
    if run.rows("full"):
        of = FactorisedSettings(native=settings.factorised, most_rows=MOST_RANKED_ROWS)
        results.ensure(FACTORISED, of)
        names.append("factorised")
        if "weight" in run.stream("full").quantities:
            results.ensure(WEIGHT_RANKS, RankSettings("weight", MOST_RANKED_ROWS))
            names.append("weight_ranks")
    if len(run.rows("track")) > 1:
        results.ensure(SERIES, settings)
        names.append("series")
    return {**{name: name for name in names}, **_fit_compensated(results, settings)}


def _rank_settings(results: Results) -> RankSettings:
    """Those of a fit where its ranks are there, which are of more rows."""
    of_fit = RankSettings()
    kept = results.holds("ranks", results.key(RANKS, of_fit))
    return of_fit if kept else RankSettings(most_rows=MOST_RANKED_ROWS)


def _fit_compensated(results: Results, settings: ReportSettings) -> dict[str, str]:
    run = results.opened
    try:
        total = len(run.rows(run.consecutive))
    except ValueError as error:
        results.skipped.append(f"No distributions of compensated gradients: {error}.")
        return {}
    chosen = FitSettings(
        families=settings.families,
        ratios=settings.ratios,
        compensated=compressor(COMPENSATED),
        stride=-(-total // MOST_FITTED_ROWS),
    )
    deadline = time.monotonic() + FIT_SHARE * settings.budget
    results.ensure(fits(chosen.suffix, deadline), chosen)
    return {"fits_compensated": f"fits{chosen.suffix}"}


def _replay_settings(settings: ReportSettings) -> ReplaySettings:
    return ReplaySettings(
        settings.compressors,
        settings.ratios,
        FEEDBACKS,
        GRANULARITIES,
        seed=settings.seed,
    )


def _telling(job: Job) -> bool:
    """What trains without feedback is judged without it; where ω > 1 it would only blow up."""
    return job.feedback != "ef" or bool(job.labels["wants_feedback"])


def _replay(results: Results, replaying: Replaying) -> dict[str, str]:
    """Keep the tables of compressors: timed first, then replayed until the deadline."""
    run = results.opened
    if run.fitted_kind == "summary" and not run.holds("track"):
        results.skipped.append("No method was timed or replayed: the rows are Summaries.")
        nothing_replayed(results, replaying)
        return {"replay": "replay", "timings": "timings"}
    results.ensure(TIMINGS, replaying)
    results.ensure(EQUAL_BITS, EqualBitsSettings.of(replaying.settings))
    results.ensure(REPLAY, replaying)
    return {name: name for name in ("replay", "timings", "equal_bits")}


def _importable(specs: list[str] | None) -> list[type[Family]]:
    """The families of a report; one of the user's own may not be importable on this machine."""
    families: list[type[Family]] = []
    for spec in [each.name for each in FAMILIES] if specs is None else specs:
        with suppress(ValueError):
            families.append(family(spec))
    return families


def _drawn(folder: Path, every: list[Section]) -> list[Section]:
    """The sections with their figures drawn into the folder."""
    figures = folder / "figures"
    with writing(folder):
        figures.mkdir(exist_ok=True)
        return [
            replace(
                section,
                figures=[
                    (name, text, draw(name, how, figures)) for name, text, how in section.figures
                ],
            )
            for section in every
        ]
