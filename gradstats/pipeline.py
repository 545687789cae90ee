"""From a run to its report: computes what is missing, in a budget, and leaves the store alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gradstats import extras
from gradstats.compressors import COMPRESSORS
from gradstats.fitting import RATIOS
from gradstats.jobs import FEEDBACKS, GRANULARITIES, Job, plan, replay_jobs, timing_rows
from gradstats.network import Network
from gradstats.reporting import tables
from gradstats.reporting.advice import advice, law_sentence
from gradstats.reporting.figures import draw, figures
from gradstats.reporting.page import Page, render
from gradstats.results import Results, results_folder, run_settings
from gradstats.runs import Run, fit_table, groups, threshold_table
from gradstats.summary import Summary

Table = Any
Progress = Callable[[str, int, int], None]  # stage, done, of how many


def report(
    run: Run,
    *,
    budget: float = 300.0,
    by: str = "module-type",
    out: str | Path | None = None,
    ratios: Sequence[float] = RATIOS,
    compressors: Sequence[str] = tuple(COMPRESSORS),
    network: Network | None = None,
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
        compressors: specs in the grammar.
        network: that exchanges are projected on; default 8 workers at 10 Gbit/s.
        seed: of the random methods.
        progress: called with (stage, done, of how many).

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the run has no row, or a setting is out of range.
        ImportError: a package of gradstats[analysis] is missing.
    """
    for module in ("pandas", "pyarrow", "seaborn", "jinja2"):
        extras.load(module)  # what is missing is said before the work
    tell = progress or (lambda stage, done, total: None)
    deadline = time.monotonic() + budget
    network = network or Network()
    if not run.rows("full") and not run.rows("track"):
        raise ValueError(f"run must have a row to report on, got none in {run}")
    results = Results(
        Path(out) if out else results_folder(run), run_settings(run, ratios, compressors, seed)
    )
    last = _fit(run, results, by, tell)
    _time(run, results, tell)
    _replay(run, results, deadline, tell)
    methods = tables.methods_table(results.table("replay"), results.table("timings"), network)
    results.keep("methods", methods)
    tell("draw", 0, 1)
    page = _page(run, results, network, _draw(results, last))
    path = results.folder / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def _fit(run: Run, results: Results, by: str, tell: Progress) -> Summary | None:
    """Keep the tables of laws and thresholds; returns the last summary of the whole model."""
    ratios = results.settings["ratios"]
    found = groups(run, progress=lambda done, total: tell("fit", done, total))
    parts = found if by == "model" else groups(run, by=by)
    results.keep("fits", fit_table(found, ratios=ratios))
    results.keep("fits_by_part", fit_table(parts, ratios=ratios))
    results.keep("thresholds", threshold_table(found, ratios=ratios))
    return found[-1].summary if found else None


def _time(run: Run, results: Results, tell: Progress) -> None:
    if results.table("timings") is not None:
        return
    settings = results.settings
    tell("time", 0, 1)
    rows = timing_rows(
        run, settings["compressors"], ratios=settings["ratios"], seed=settings["seed"]
    )
    results.keep("timings", tables.timing_table(rows))


def _draw(results: Results, last: Summary | None) -> list[tuple[str, str, bytes]]:
    kept = [results.table(name) for name in ("fits", "replay", "methods", "timings")]
    return [
        (name, caption, draw(name, drawing, results.folder / "figures"))
        for name, caption, drawing in figures(last, *kept)
    ]


def _batches(run: Run, settings: dict[str, Any]) -> Iterator[tuple[str, list[Job]]]:
    """What to replay, the most telling first; each batch is one pass over the rows."""
    ratios = sorted(settings["ratios"], key=lambda ratio: (ratio != 0.01, ratio))
    for granularity, ratio in product(GRANULARITIES, ratios):
        jobs = plan(
            run,
            settings["compressors"],
            ratios=[ratio],
            feedback=FEEDBACKS,
            granularity=[granularity],
        )
        idle = [job for job in jobs if job.feedback == "ef" and job.labels["method"] == "none"]
        name = f"ratio {ratio:g}, one threshold a {granularity}"
        yield name, [job for job in jobs if job not in idle]


def _replay(run: Run, results: Results, deadline: float, tell: Progress) -> None:
    pandas = extras.load("pandas")
    known = results.table("replay")
    parts = [] if known is None else [known]
    done = set() if known is None else {_key(row) for row in known[KEY].to_dict("records")}
    longest = {"model": 0.0}
    for name, batch in _batches(run, results.settings):
        jobs = [job for job in batch if _key(job.labels) not in done]
        if not jobs:
            continue
        granularity = jobs[0].granularity
        # a part costs about half of a whole vector that is tracked: most of it is overhead
        guess = longest["model"] * (1 + len(run.names) / 2 if granularity == "parameter" else 1)
        expected = longest.get(granularity, guess)
        if parts and time.monotonic() + expected > deadline:
            results.skipped.append(f"Not replayed, the budget was spent: {name}.")
            continue
        start = time.monotonic()
        rows = replay_jobs(
            run,
            jobs,
            seed=results.settings["seed"],
            progress=lambda count, total, name=name: tell(f"replay {name}", count, total),  # type: ignore[misc]
        )
        longest[granularity] = max(longest.get(granularity, 0.0), time.monotonic() - start)
        parts.append(pandas.DataFrame(rows))
        done |= {_key(job.labels) for job in jobs}
    results.keep("replay", pandas.concat(parts, ignore_index=True))


KEY = ["compressor", "feedback", "granularity", "rows"]


def _key(labels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in KEY)


def _page(
    run: Run,
    results: Results,
    network: Network,
    drawn: list[tuple[str, str, bytes]],
) -> Page:
    ratios = results.settings["ratios"]
    fits, part_fits, thresholds, methods = (
        results.table(name) for name in ("fits", "fits_by_part", "thresholds", "methods")
    )
    ranked = tables.ranking(methods)
    laws = tables.best_law(fits)
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
            "ranked by it, those that hold back more than 1.5 times the least (italic) last. "
            "Grey: error feedback has not settled, so not ranked."
        ),
        caveats=_caveats(run, results, methods),
        figures=drawn,
        tables=[
            ("Laws", "Medians over rows.", laws),
            (
                "Laws by part",
                "The best law of each part by median Kolmogorov-Smirnov distance.",
                tables.best_by_group(part_fits),
            ),
            (
                "SIDCo thresholds on whole gradients",
                "Median k̂/k by number of stages (fixed), without error feedback.",
                tables.by_ratio(thresholds, ["variant", "stages"]),
            ),
            ("All methods", "Medians over rows; see methods.parquet.", _shown(methods)),
        ],
        skipped=results.skipped,
        settings=results.settings,
    )


def _shown(methods: Table) -> Table:
    columns = ["compressor", "feedback", "granularity", "rows", "steps", "khat_over_k", "miss"]
    columns += ["error", "error_compensated", "cosine", "bits", "residual_ratio", "settled"]
    return methods[[*columns, "status"]]


def _facts(run: Run, results: Results) -> list[tuple[str, str]]:
    made = run.store.provenance
    full, track = run.stream("full"), run.stream("track")
    some = full if len(full) else track
    points = sorted({str(point) for point in some.coordinates["point"]})
    elements = sum(part.numel for part in run.parts("full"))
    steps = [int(step) for stream in (full, track) for step in stream.steps]
    tracked = f"{len(track)} of {sum(part.numel for part in run.parts('track')):,} elements"
    return [
        ("model", str(made.get("model", "unknown"))),
        ("parameters", f"{elements:,} elements in {len(run.names)} tensors"),
        ("observation point", ", ".join(points)),
        ("steps", f"{min(steps)}–{max(steps)}"),
        ("full rows", str(len(full))),
        ("tracked rows", tracked if len(track) else "none"),
        ("captured on", str(made.get("device", "unknown"))),
        ("timed on", results.settings["device"]),
    ]


def _caveats(run: Run, results: Results, methods: Table) -> list[str]:
    stream = run.stream("full") if len(run.stream("full")) else run.stream("track")
    points = set(stream.coordinates["point"])
    sentences = [
        "Open loop: these gradients come from training without compression, which would have "
        "changed them.",
        f"Timings are of {results.settings['device']}; on another device the ranking may differ.",
    ]
    if points != {"local"}:
        sentences.append(
            f"The gradients were taken at the point “{', '.join(sorted(points))}”; a DDP "
            "communication hook sees local gradients, before the reduction."
        )
    feedback = methods[(methods["feedback"] == "ef") & (methods["status"] == "ok")]
    if len(feedback):
        unsettled = int((feedback["settled"] != True).sum())  # noqa: E712
        sentences.append(
            f"{unsettled} of {len(feedback)} feedback lines have not settled "
            f"(‖e‖/‖g‖ still moves, or fewer than 200 steps); they are not ranked."
        )
    if (feedback["rows"] == "track").any():
        sentences.append(
            "Feedback is replayed on the tracked elements, a random sample of the model "
            f"({run.stream('track').sampling_fraction:.1%})."
        )
    failed = methods[methods["status"] != "ok"]["status"].value_counts()
    sentences += [f"{count} lines of methods, {reason}." for reason, count in failed.items()]
    broken = int(methods["skipped_rows"].max()) if len(methods) else 0
    if broken:
        sentences.append(f"Up to {broken} rows were skipped for NaN or inf elements.")
    return sentences
