"""From a run to its report: computes what is missing, in a budget, and leaves the store alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from gradstats import extras
from gradstats.compressors import SUPPORTED, Compressor, Memory, compressor
from gradstats.compressors import compressors as compressors_of
from gradstats.factorised import factorised_rows
from gradstats.fits import TABLES, FitSettings, fit_steps, fit_tables, with_spread
from gradstats.fitting import RATIOS
from gradstats.frontier import HYBRIDS, MOST_ELEMENTS, equal_bits
from gradstats.grouping import groups
from gradstats.jobs import (
    FEEDBACKS,
    GRANULARITIES,
    UNDER_A_SCALE,
    Job,
    last_finite,
    plan,
    replay_jobs,
    rows_expected,
    timing_rows,
)
from gradstats.network import Network
from gradstats.over_steps import over_steps, rank_table
from gradstats.reporting import laws as law_tables
from gradstats.reporting import tables
from gradstats.reporting.advice import advice, law_sentence
from gradstats.reporting.page import Page, Section, render
from gradstats.reporting.sections import draw, sections
from gradstats.results import Results, results_folder, run_settings
from gradstats.runs import FITTED, Run
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
        factorised: a captured run of the same model in factors, see `gradstats.factorised`.
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
    page = _page(run, results, network, _drawn(results, last, kept))
    path = results.folder / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def _settings(
    run: Run, ratios: Sequence[float], compressors: Sequence[object], seed: int
) -> dict[str, Any]:
    named = [str(each) for each in compressors]
    return run_settings(run, ratios=list(ratios), compressors=named, seed=seed)


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


KEY = ["compressor", "feedback", "granularity", "rows"]


def _key(labels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in KEY)


def _page(
    run: Run,
    results: Results,
    network: Network,
    drawn: list[Section],
) -> Page:
    ratios = results.settings["ratios"]
    fits, thresholds, methods = (results.table(name) for name in ("fits", "thresholds", "methods"))
    ranked = tables.ranking(methods)
    laws = law_tables.best_law(fits)
    return Page(
        title=f"gradstats report: {results.settings['run']}",
        facts=_facts(run, results),
        advice=advice(ranked, network),
        law=law_sentence(laws, thresholds, min(ratios)),
        ranking=ranked,
        ranking_note=(
            f"At ratio {tables.headline_ratio(methods):g}, one threshold for the whole model. "
            "error: relative, of what was waiting to be sent; ‖e‖/‖g‖: what error feedback holds "
            f"back. exchange: encode + decode + collective, projected on {network}; methods are "
            "ranked by it, those that hold back over 1.5 times as much as Top-k (italic) last. "
            "Grey: error feedback has not settled, so not ranked."
        ),
        caveats=_caveats(run, results, methods),
        sections=drawn,
        skipped=results.skipped,
        settings={**results.settings, "network": asdict(network)},
    )


def _facts(run: Run, results: Results) -> list[tuple[str, str]]:
    made = run.store.provenance
    rows = {kind: run.rows(kind) for kind in FITTED}
    steps = [int(run.stream(kind).steps[row]) for kind, found in rows.items() for row in found]
    elements = sum(part.numel for part in run.parts("full"))
    tracked = (
        f"{len(rows['track'])} of {sum(part.numel for part in run.parts('track')):,} elements"
    )
    return [
        ("model", str(made.get("model", "unknown"))),
        ("parameters", f"{elements:,} elements in {len(run.names)} tensors"),
        ("observation point", ", ".join(_points(run))),
        ("steps", f"{min(steps)}–{max(steps)}"),
        ("full rows", str(len(rows["full"]))),
        ("tracked rows", tracked if rows["track"] else "none"),
        *([("rows of Summaries", str(len(rows["summary"])))] if rows["summary"] else []),
        ("captured on", str(made.get("device", "unknown"))),
        ("timed on", results.settings["device"]),
    ]


def _points(run: Run) -> list[str]:
    kind = run.fitted_kind
    points = run.stream(kind).coordinates["point"][run.rows(kind)]
    return sorted({str(point) for point in points})


def _caveats(run: Run, results: Results, methods: Table) -> list[str]:
    points = _points(run)
    sentences = [
        "Open loop: these gradients come from training without compression, which would have "
        "changed them.",
        "Neither loss nor convergence was measured: methods are compared by the time of an "
        "exchange and by what they hold back.",
        f"Timings are of {results.settings['device']}; on another device the ranking may differ. "
        "No overlap with the backward pass is assumed; dense buckets overlap it best.",
    ]
    if points != ["local"]:
        sentences.append(
            f"The gradients were taken at the point “{', '.join(points)}”; a DDP "
            "communication hook sees local gradients, before the reduction."
        )
    sentences += [f"{text[:1].upper()}{text[1:]}." for text in run.remarks]
    if run.multiplied and points == ["local"]:
        sentences.append(UNDER_A_SCALE)
    feedback = methods[(methods["feedback"] == "ef") & (methods["status"] == "ok")]
    if len(feedback):
        unsettled = int((feedback["settled"] != True).sum())  # noqa: E712
        sentences.append(
            f"{unsettled} of {len(feedback)} feedback lines have not settled "
            f"(‖e‖/‖g‖ still moves, or fewer than 200 or 1/ratio steps); they are not ranked."
        )
    if (feedback["rows"] == "track").any():
        sentences.append(
            "Feedback is replayed on the tracked elements, a random sample of the model "
            f"({_tracked_share(run):.1%})."
        )
    failed = methods[methods["status"] != "ok"]["status"].value_counts()
    sentences += [f"{count} lines of methods, {reason}." for reason, count in failed.items()]
    broken = int(methods["skipped_rows"].max()) if len(methods) else 0
    if broken:
        sentences.append(f"Up to {broken} rows were skipped for NaN or inf elements.")
    return sentences


def _tracked_share(run: Run) -> float:
    """Tracked elements over all elements of the model, those with sparse gradients included."""
    ids = run.stream("track").element_ids or {}
    return sum(map(len, ids.values())) / max(1, sum(part.numel for part in run.table))
