"""From a run to its report: computes what is missing, in a budget, and leaves the store alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from gradstats import extras
from gradstats.compressors import SUPPORTED, Compressor, Memory, compressor
from gradstats.compressors import compressors as compressors_of
from gradstats.fitting.over_steps import over_steps, rank_table
from gradstats.fitting.run import TABLES, FitSettings, fit_steps, fit_tables, with_spread
from gradstats.network import Network
from gradstats.ratios import RATIOS, DenseRule
from gradstats.replaying import ranking as tables
from gradstats.replaying.equal_bits import HYBRIDS, MOST_ELEMENTS, equal_bits
from gradstats.replaying.factorised import factorised_rows
from gradstats.replaying.planning import FEEDBACKS, GRANULARITIES, Job, plan
from gradstats.replaying.run import last_finite, replay_jobs, rows_expected, timing_rows
from gradstats.reporting.front_page import front_page
from gradstats.reporting.page import Section, render
from gradstats.reporting.sections import draw, sections
from gradstats.runs.groups import groups
from gradstats.runs.results import Results, results_folder, run_settings
from gradstats.runs.run import Run
from gradstats.summary import Summary

Table = Any
Progress = Callable[[str, int, int], None]  # stage, done, of how many
FIRST_BATCH_SECONDS = 10.0
FIT_SHARE = 0.2  # of the budget, for the laws of compensated gradients
MOST_FITTED_ROWS = 16  # compensated ones
MOST_RANKED_ROWS = 8
COMPENSATED = "topk(0.01)"
KEPT = [*TABLES, "fits_by_part", "fits_compensated", "ranks", "series"]
KEPT += ["replay", "methods", "timings", "equal_bits", "factorised", "weight_ranks"]


def report(
    run: Run,
    *,
    budget: float = 300.0,
    by: str = "module-type",
    out: str | Path | None = None,
    ratios: Sequence[float] = RATIOS,
    compressors: Sequence[str | Compressor] = tuple(SUPPORTED),
    network: Network | None = None,
    factorised: Run | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Fit, time and replay what is missing, then write the report.

    Args:
        run: an open run.
        budget: seconds after which no further replay is begun; what is skipped is said in the
            report.
        by: grouping of the second table of laws: "model", "module-type" or "parameter".
        out: folder to write; default `RUN.results` beside the run.
        ratios: target ratios, each in (0, 1].
        compressors: specs in the grammar, or instances.
        network: that exchanges are projected on; default 8 workers at 10 Gbit/s.
        factorised: a captured run of the same model in factors, see
            `gradstats.replaying.factorised`.
        seed: of the random methods.
        progress: called with (stage, done, of how many).

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the run has no row, a loss scale is not known, or a setting is out of range.
        ImportError: a package of gradstats[analysis] is missing.
    """
    for module in ("pandas", "pyarrow", "seaborn", "jinja2"):
        extras.load(module)  # what is missing is said before the work
    tell = progress or (lambda stage, done, total: None)
    deadline = time.monotonic() + budget
    network = network or Network()
    kind = run.fitted_kind
    run.check(kind)
    results = Results(
        Path(out) if out else results_folder(run), _settings(run, ratios, compressors, seed)
    )
    last = _fit(run, results, by, tell)
    _fit_more(run, results, budget, tell, factorised)
    if kind == "summary" and not run.holds("track"):
        results.skipped.append("No method was timed or replayed: the rows are Summaries.")
        results.keep("timings", tables.timing_table([]))
        results.keep("replay", tables.no_replay())
    else:
        _time(run, results, compressors, tell)
        _replay(run, results, compressors, deadline, tell)
    methods = tables.methods_table(results.table("replay"), results.table("timings"), network)
    results.keep("methods", methods)
    tell("draw", 0, 1)
    kept = {name: results.table(name) for name in KEPT}
    page = front_page(run, results, network, _drawn(results, last, kept))
    path = results.folder / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def _settings(
    run: Run, ratios: Sequence[float], compressors: Sequence[object], seed: int
) -> dict[str, Any]:
    named = [str(each) for each in compressors]
    return run_settings(
        run, ratios=list(ratios), compressors=named, seed=seed, dense=str(DenseRule())
    )


def _fit(run: Run, results: Results, by: str, tell: Progress) -> Summary | None:
    """Keep the tables of laws and thresholds; returns the last summary of the whole model."""
    ratios = tuple(results.settings["ratios"])
    model = fit_tables(
        run, FitSettings(ratios=ratios), progress=lambda done, total: tell("fit", done, total)
    )
    parts = model if by == "model" else fit_tables(run, FitSettings(by=by, ratios=ratios))
    results.keep("fits", with_spread(model["fits"]))
    results.keep("fits_by_part", with_spread(parts["fits"]))
    for name in ("thresholds", "reuse"):
        results.keep(name, model[name])
    results.keep("structure", parts["structure"])
    ((last,),) = groups(run, first=len(run.rows(run.fitted_kind)) - 1)
    return last.summary if last.status == "ok" else None


def _fit_more(
    run: Run, results: Results, budget: float, tell: Progress, native: Run | None
) -> None:
    """Keep tables of ranks, low rank, elements over the steps, and compensated gradients."""
    told = partial(tell, "ranks")
    results.keep("ranks", rank_table(run, most_rows=MOST_RANKED_ROWS, progress=told))
    if run.rows("full"):
        told = partial(tell, "low rank")
        found = factorised_rows(run, native=native, most_rows=MOST_RANKED_ROWS, progress=told)
        results.keep("factorised", found)
        if "weight" in run.stream("full").quantities:
            weights = rank_table(run, quantity="weight", most_rows=MOST_RANKED_ROWS)
            results.keep("weight_ranks", weights)
    tracked = len(run.rows("track"))
    if tracked > 1:
        results.keep("series", over_steps(run, progress=partial(tell, "over steps")))
    try:
        total = len(run.rows(run.consecutive))
    except ValueError as error:
        results.skipped.append(f"No laws of compensated gradients: {error}.")
        return
    settings = FitSettings(
        ratios=tuple(results.settings["ratios"]),
        compensated=compressor(COMPENSATED),
        stride=-(-total // MOST_FITTED_ROWS),
    )
    deadline, rows = time.monotonic() + FIT_SHARE * budget, []
    for step in fit_steps(run, settings):
        rows += step.rows["fits"]
        tell("fit compensated", step.index + 1, total)
        if time.monotonic() > deadline and step.index + 1 < total:
            fact = f"{step.index + 1:,} of {total:,} rows"
            results.skipped.append(f"Compensated in part, {fact}, its share was spent.")
            break
    if rows:
        results.keep("fits_compensated", extras.load("pandas").DataFrame(rows))


def _time(
    run: Run, results: Results, compressors: Sequence[str | Compressor], tell: Progress
) -> None:
    if results.table("timings") is not None:
        return
    settings = results.settings
    tell("time", 0, 1)
    rows = timing_rows(run, compressors, ratios=settings["ratios"], seed=settings["seed"])
    results.keep("timings", tables.timing_table(rows))
    grad = last_finite(run)
    if grad is None:
        return
    tell("equal bits", 0, 1)
    specs = [spec for spec in compressors if not isinstance(_made(spec), Memory)]
    some = grad[:: -(-grad.numel() // MOST_ELEMENTS)].contiguous()
    found = equal_bits(some, [*specs, *HYBRIDS], ratios=settings["ratios"], seed=settings["seed"])
    results.keep("equal_bits", extras.load("pandas").DataFrame(found))


def _made(spec: str | Compressor) -> Compressor:
    return compressors_of(spec, (0.5,))[0] if isinstance(spec, str) else spec


def _drawn(results: Results, last: Summary | None, tables: dict[str, Table]) -> list[Section]:
    """The sections with their figures drawn into the folder."""
    folder = results.folder / "figures"
    return [
        replace(
            section,
            figures=[(name, text, draw(name, how, folder)) for name, text, how in section.figures],
        )
        for section in sections(last, tables)
    ]


def _batches(
    run: Run, compressors: Sequence[str | Compressor], ratios: Sequence[float]
) -> Iterator[tuple[str, list[Job]]]:
    """What to replay, the most telling first; each batch is one pass over the rows."""
    telling = sorted(ratios, key=lambda ratio: (ratio != 0.01, ratio))
    for granularity, ratio in product(GRANULARITIES, telling):
        jobs = plan(
            run, compressors, ratios=[ratio], feedback=FEEDBACKS, granularity=[granularity]
        )
        # what trains without feedback is judged without it; where ω > 1 it would only blow up
        idle = [job for job in jobs if job.feedback == "ef" and not job.labels["wants_feedback"]]
        name = f"ratio {ratio:g}, one threshold a {granularity}"
        yield name, [job for job in jobs if job not in idle]


def _replay(
    run: Run,
    results: Results,
    compressors: Sequence[str | Compressor],
    deadline: float,
    tell: Progress,
) -> None:
    """Replay what is missing until the deadline; the first batch has ten seconds in any case."""
    pandas = extras.load("pandas")
    known = results.table("replay")
    parts = [] if known is None else [known[known["whole"]]]
    done = {_key(row) for part in parts for row in part[KEY].to_dict("records")}
    for name, batch in _batches(run, compressors, results.settings["ratios"]):
        jobs = [job for job in batch if _key(job.labels) not in done]
        if not jobs:
            continue
        now = time.monotonic()
        if parts and now > deadline:
            results.skipped.append(f"Not replayed, the budget was spent: {name}.")
            continue
        rows = replay_jobs(
            run,
            jobs,
            seed=results.settings["seed"],
            progress=lambda count, total, name=name: tell(f"replay {name}", count, total),  # type: ignore[misc]
            deadline=deadline if parts else max(deadline, now + FIRST_BATCH_SECONDS),
        )
        wanted = rows_expected(run, jobs)
        if len(rows) < wanted:
            fact = f"{len(rows):,} of {wanted:,} rows"
            results.skipped.append(f"Replayed in part, {fact}, the budget was spent: {name}.")
        parts.append(pandas.DataFrame(rows).assign(whole=len(rows) == wanted))
        done |= {_key(job.labels) for job in jobs}
        results.keep("replay", pandas.concat(parts, ignore_index=True))


KEY = ["compressor", "feedback", "granularity", "dense", "rows"]


def _key(labels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in KEY)
